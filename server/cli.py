"""``flexmoe-server``: the coordinator's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexmoe_core.errors import FlexMoeError
from server.report.page import write_report

app = typer.Typer(
    name="flexmoe-server",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Coordinate a federation of Flex-MoE.",
)


@app.callback()
def coordinate() -> None:
    """Coordinate a federation of Flex-MoE."""


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]) -> None:
    """Write the HTML page of RUN again, and print its path."""
    typer.echo(write_report(run))


def main() -> None:
    """Run the command line; a problem of the user's ends in its message and exit code 2."""
    try:
        app()
    except FlexMoeError as error:
        typer.echo(f"flexmoe-server: {error}", err=True)
        raise SystemExit(2) from None
