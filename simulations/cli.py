"""``flexmoe-sim``: federations of hospitals on one machine."""

from __future__ import annotations

import typer

from flexmoe_core.errors import FlexMoeError
from simulations.datasets.commands import prepare

app = typer.Typer(
    name="flexmoe-sim",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Simulate federations of Flex-MoE on one machine: prepare data, run, compare.",
)
app.add_typer(prepare, name="prepare")


def main() -> None:
    """Run the command line; a problem of the user's ends in its message and exit code 2."""
    try:
        app()
    except FlexMoeError as error:
        typer.echo(f"flexmoe-sim: {error}", err=True)
        raise SystemExit(2) from None
