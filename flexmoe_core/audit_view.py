"""What the commands ``audit verify`` and ``audit show`` print, at a hospital and at the coordinator."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flexmoe_core.audit_line import Entry
from flexmoe_core.audit_verify import Verdict
from flexmoe_core.command_line import WRONG_INPUT, tell
from flexmoe_core.errors import Problem

LONG_HASH = re.compile("[0-9a-f]{32,64}")
SHORT_HASH = 12
MOST_LISTED = 12

Last = Annotated[int | None, typer.Option("--last", metavar="N", min=1, help="Show the newest N lines alone.")]


def conclude(verdict: Verdict, found: Iterable[str] = (), problems: Sequence[Problem] = ()) -> None:
    """Print a verdict, what else was ``found``, and each problem on a line of stderr; exit code 2 with any."""
    rows = {
        "Record": str(verdict.path),
        "Lines": str(verdict.lines),
        "First": verdict.entries[0].time if verdict.entries else "-",
        "Last": verdict.entries[-1].time if verdict.entries else "-",
        "Head": f"{verdict.head.count} {verdict.head.hash}",
    }
    for title, value in rows.items():
        typer.echo(f"{title:<9} {value}")
    for note in verdict.notes:
        typer.echo(f"{'Note':<9} {note}")
    for line in found:
        typer.echo(line)
    broken = [*verdict.problems, *problems]
    if broken:
        tell(map(str, broken))
        raise typer.Exit(WRONG_INPUT)
    typer.echo("unbroken")


def show(verdict: Verdict, last: int | None) -> None:
    """Print the lines of a record for a reader, newest last. Long hashes are shortened, nulls left out."""
    console = Console()
    for entry in verdict.entries[-last if last else None :]:
        console.print(_title(entry))
        console.print(Padding(_facts(entry), (0, 0, 0, 6)))
    if not verdict.unbroken:
        tell([f"{verdict.path}: this record is broken; 'audit verify' says where"])


def _title(entry: Entry) -> Text:
    question, round_number = entry.facts.get("question"), entry.facts.get("round")
    place = f" round {round_number}" if round_number is not None else ""
    title = f"{entry.event}: {question}{place}" if question else f"{entry.event}{place}"
    return Text.assemble((f"{entry.number:>5} ", "dim"), f"{entry.time}  ", (title, "bold"))


def _facts(entry: Entry) -> Table:
    table = Table.grid("", "", padding=(0, 2, 0, 0))
    in_title = ("question", "round") if "question" in entry.facts else ("round",)
    for key, value in entry.facts.items():
        if key not in in_title and value is not None and value not in ([], {}):
            table.add_row(Text(key, "dim"), Text(_inner(value) if isinstance(value, dict) else _word(value)))
    return table


def _inner(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_word(one)}" for key, one in facts.items() if one is not None and one not in ([], {}))


def _word(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case str() if LONG_HASH.fullmatch(value):
            return f"{value[:SHORT_HASH]}…"
        case list():
            listed = ", ".join(map(_word, value[:MOST_LISTED]))
            return f"[{listed}, ... {len(value)} in all]" if len(value) > MOST_LISTED else f"[{listed}]"
        case dict():
            return f"({_inner(value)})"
        case _:
            return str(value)
