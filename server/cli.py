"""``flexmoe-server``: the coordinator's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexmoe_core.command_line import run_command_line
from server.deployment import commands, run_commands
from server.deployment.health import health
from server.audit_commands import audit
from server.report.page import write_report

app = typer.Typer(
    name="flexmoe-server",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Coordinate a federation of Flex-MoE.",
)
app.add_typer(audit, name="audit")


@app.callback()
def coordinate() -> None:
    """Coordinate a federation of Flex-MoE."""


for command in (
    commands.init,
    commands.enroll,
    commands.revoke,
    commands.renew,
    commands.start,
    run_commands.run,
    run_commands.resume,
    run_commands.stop,
    run_commands.status,
    health,
):
    app.command()(command)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]) -> None:
    """Write the HTML page of RUN again, and print its path."""
    typer.echo(write_report(run))


def main() -> None:
    """Entry point of the console script."""
    run_command_line("flexmoe-server", app)
