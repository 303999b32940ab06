"""The commands ``flexmoe-client ledger``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.ledger_place import ledger_place
from client.ledger_start import begin, earlier_charges
from client.ledger_verify import verify_ledger
from flexmoe_core.audit_view import conclude
from flexmoe_core.errors import InputError, Problem

Node = Annotated[Path, typer.Argument(metavar="NODE", show_default=False)]

ledger = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Start and check the privacy ledger of your patients."
)


@ledger.command()
def init(
    node: Node,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is written in the first line.")],
    assume_unspent: Annotated[
        bool,
        typer.Option("--assume-unspent", help="As far as you know, nothing was released from these data before."),
    ] = False,
    carry_over: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What was charged before: a ledger (.jsonl) or your list of it (.toml)."),
    ] = None,
) -> None:
    """Start the privacy ledger, once, before the first training; or anew where it is damaged or lost.

    NODE is your node folder.

    What was spent before never becomes nothing by itself: say --assume-unspent, or name it with --carry-over.

    A ledger that is whole is left as it is. A damaged one is kept beside the new one, whose first line names it.
    """
    if not reason.strip():
        raise InputError([Problem("--reason", "", "is empty", "Write why the ledger is started.")])
    if assume_unspent == (carry_over is not None):
        what = "nothing says what was spent before" if carry_over is None else "cannot both be given"
        remedy = "Give --carry-over FILE if anything was ever released from these data, --assume-unspent if not."
        raise InputError([Problem("--assume-unspent, --carry-over", "", what, remedy)])
    place = ledger_place(node)
    before = None if carry_over is None else earlier_charges(carry_over)
    begun = begin(place.state, place.key, reason, before)
    typer.echo(f"{place.path} is started with {len(begun.charges)} earlier charges")
    for file in sorted(place.state.glob(f"{place.path.stem}*.broken-*")):
        typer.echo(f"kept aside: {file}")


@ledger.command()
def verify(
    node: Node,
    server_record: Annotated[
        Path | None, typer.Option("--server-record", metavar="FILE", help="Copy of the coordinator's audit.jsonl.")
    ] = None,
) -> None:
    """Check that nobody has changed, removed or replaced a line of the privacy ledger.

    NODE is your node folder, or the state folder of a simulated site.

    Your audit record, and with --server-record the coordinator's, name where the ledger ended when each answer left.
    A ledger that was set back to an older copy contradicts them.

    Exit code 0: unbroken. Exit code 2: broken, with every problem on a line of its own.
    """
    verdict = verify_ledger(ledger_place(node), server_record)
    conclude(verdict.chain, [f"{'Compared':<9} {verdict.compared} heads told with answers"], verdict.problems)
