"""Options that all commands ``flexmoe-sim benchmark ...`` share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.settings import PRESETS
from simulations.datasets.commands import HeartProtocol

Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. method.model.width=64. Repeatable."),
]
Protocol = Annotated[
    HeartProtocol,
    typer.Option(help="flamby: FLamby's 254 test patients for every seed. all: another split of all 920 per seed."),
]
Preset = Annotated[str, typer.Option(help=f"Settings to start from: {', '.join(PRESETS)}.")]
Seeds = Annotated[str, typer.Option(help="Such as 0-4 or 0,3,7.")]
Validation = Annotated[float, typer.Option(help="Share of the other patients to hold out of training.")]


def parse_seeds(text: str) -> list[int]:
    """``0-2,5`` is 0, 1, 2, 5; raises InputError for anything else than such a list."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise InputError([Problem("--seeds", part, "is neither a number nor a range", "Write 0-4 or 0,3,7.")])
        seeds.extend(range(first, last + 1))
    return list(dict.fromkeys(seeds))
