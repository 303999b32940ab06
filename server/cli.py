"""``flexmoe-server``: the coordinator's command line."""

from __future__ import annotations

import typer

from flexmoe_core.command_line import lazy_group, run_command_line

PLACES = {
    "init": "server.deployment.commands:init",
    "enroll": "server.deployment.commands:enroll",
    "revoke": "server.deployment.commands:revoke",
    "renew": "server.deployment.commands:renew",
    "start": "server.deployment.commands:start",
    "run": "server.deployment.run_commands:run",
    "status": "server.deployment.run_commands:status",
    "stop": "server.deployment.run_commands:stop",
    "resume": "server.deployment.run_commands:resume",
    "report": "server.report.command:report",
    "audit": "server.audit_commands:audit",
    "health": "server.deployment.health:health",
}

app = typer.Typer(
    name="flexmoe-server",
    cls=lazy_group(PLACES),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def coordinate() -> None:
    """Coordinate a federation of Flex-MoE."""


def main() -> None:
    """Entry point of the console script."""
    run_command_line("flexmoe-server", app)
