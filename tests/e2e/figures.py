"""What the end-to-end tests measure, kept for docs/benchmarks.md: one line per fault."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

FIGURES = Path(__file__).parents[2] / "build" / "e2e-figures.jsonl"


def note_rounds(what: str, seconds: Sequence[float], training: Sequence[float]) -> None:
    """Medians over the rounds of a run: seconds of a round, and of a site's own work in it."""
    _write({"rounds": what, "seconds": round(median(seconds), 2), "site_seconds": round(median(training), 3)})


def note(fault: str, rounds: int, lost: int, seconds: float) -> None:
    """Rounds planned, rounds that were not aggregated with every site, and seconds until all was well again."""
    _write({"fault": fault, "rounds": rounds, "rounds_lost": lost, "seconds_to_recover": round(seconds, 1)})


def _write(row: dict[str, object]) -> None:
    FIGURES.parent.mkdir(exist_ok=True)
    with FIGURES.open("a") as file:
        file.write(json.dumps(row) + "\n")
