"""What the end-to-end tests measure, kept for docs/benchmarks.md: one line per fault."""

from __future__ import annotations

import json
from pathlib import Path

FIGURES = Path(__file__).parents[2] / "build" / "e2e-figures.jsonl"


def note(fault: str, rounds: int, lost: int, seconds: float) -> None:
    """Rounds planned, rounds that were not aggregated with every site, and seconds until all was well again."""
    FIGURES.parent.mkdir(exist_ok=True)
    row = {"fault": fault, "rounds": rounds, "rounds_lost": lost, "seconds_to_recover": round(seconds, 1)}
    with FIGURES.open("a") as file:
        file.write(json.dumps(row) + "\n")
