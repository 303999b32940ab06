"""flexmoe-client: what a hospital's engineer types."""

from __future__ import annotations

import typer

from flexmoe_core.command_line import lazy_group, run_command_line

PLACES = {
    "keygen": "client.key_commands:keygen",
    "roster": "client.roster_commands:roster",
    "check": "client.check_command:check",
    "start": "client.node_commands:start",
    "allow": "client.node_commands:allow",
    "status": "client.node_commands:status",
    "health": "client.node_commands:health",
    "predict": "client.predict_command:predict",
    "audit": "client.audit_commands:audit",
    "privacy": "client.privacy_commands:privacy",
    "ledger": "client.ledger_commands:ledger",
}

app = typer.Typer(
    cls=lazy_group(PLACES),
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)


@app.callback()
def _commands() -> None:
    """Take part in a federated study. Your patients' data never leave this machine."""


def main() -> None:
    """Entry point of the console script."""
    run_command_line("flexmoe-client", app)
