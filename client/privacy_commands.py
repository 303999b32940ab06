"""The commands ``flexmoe-client privacy``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.ledger import Caps, PrivacyLedger
from client.ledger_place import ledger_place
from client.policy import Policy, read_policy

privacy = typer.Typer(
    no_args_is_help=True, add_completion=False, help="See what was spent of your patients' privacy."
)


@privacy.callback()
def _commands() -> None:
    """See what was spent of your patients' privacy."""


@privacy.command()
def status(
    node: Annotated[Path, typer.Argument(metavar="NODE", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your site folder, whose policy.toml sets the limits.")
    ] = None,
    delta: Annotated[
        list[float] | None,
        typer.Option(
            metavar="DELTA", show_default="those of the charges and of policy.toml", help="May be repeated."
        ),
    ] = None,
) -> None:
    """Show what every study has cost, what all have cost together, and what is left.

    NODE is your node folder, or the state folder of a simulated site.

    Epsilon is computed over all charges at once: those of studies do not add up to that of all together.

    Exit code 0: the ledger is whole. Exit code 2: it is not, and nobody trains here.
    """
    ledger = ledger_place(node).open()
    policy = (read_policy(data) if data is not None else None) or Policy()
    charged = {one.delta for one in ledger.charges if one.delta is not None}
    caps = policy.caps(min(charged, default=1e-3))
    console = Console()
    console.print(_table(ledger, caps, delta or sorted(charged | {caps.delta}, reverse=True)))
    console.print(f"{ledger.head.count} lines, head {ledger.head.hash}", highlight=False, soft_wrap=True)


def _table(ledger: PrivacyLedger, caps: Caps, deltas: Sequence[float]) -> Table:
    table = Table("Study", title="Privacy spent, add or remove one patient")
    for name in ("Charges", "Delta", "Epsilon", "At most", "Left"):
        table.add_column(name, justify="right")
    for study in sorted({one.study for one in ledger.charges}):
        charges = sum(one.study == study for one in ledger.charges)
        for row in _rows(ledger, study, deltas, caps.study, caps.delta):
            table.add_row(study, str(charges), *row)
    table.add_section()
    for row in _rows(ledger, None, deltas, caps.lifetime, caps.delta):
        table.add_row("all together", str(len(ledger.charges)), *row)
    return table


def _rows(
    ledger: PrivacyLedger, study: str | None, deltas: Sequence[float], cap: float | None, cap_delta: float
) -> Iterator[tuple[str, str, str, str]]:
    """A limit holds at its own delta alone."""
    for delta in deltas:
        epsilon = ledger.epsilon(delta, study)
        limit, left = "-", "-"
        if cap is not None and delta == cap_delta:
            limit, left = f"{cap:g}", f"{max(cap - epsilon, 0.0):.3f}"
        yield f"{delta:g}", "infinite" if math.isinf(epsilon) else f"{epsilon:.3f}", limit, left
