"""The command ``flexmoe-sim demo``: four real hospitals, from their tables to the report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flexmoe_core.errors import InputError, Problem
from server.report.page import write_report
from server.settings import settings_with
from simulations.comparison import compare
from simulations.datasets.uci_heart import prepare_uci_heart
from simulations.run_commands import Overrides, train
from simulations.tables import print_comparison

STUDY, RUN = "hospitals", "run"


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Train the federation of Cleveland, Hungary, Switzerland and Long Beach on the UCI heart-disease data.

    Writes one folder per hospital, trains, compares with what each hospital could do alone and with pooled logistic
    regression, and writes the report.
    """
    console = Console()
    settings = settings_with(overrides or [], seed=seed)
    _clear(out)
    prepare_uci_heart(out / STUDY, "flamby", seed)
    console.print(f"Hospitals {out / STUDY}", highlight=False)
    store = train(console, out / STUDY, out / RUN, settings, settings.federation.rounds)
    with console.status("Training what the federation is compared with"):
        comparison = compare(out / STUDY, store, seed)
    print_comparison(console, comparison)
    report = write_report(store.folder, comparison.to_report())
    console.print(f"Report    {report.resolve()}", highlight=False)


def _clear(out: Path) -> None:
    """Remove an earlier demo; refuse anything else."""
    if not out.exists() or not any(out.iterdir()):
        return
    if {path.name for path in out.iterdir()} - {STUDY, RUN}:
        raise InputError([Problem(str(out), "", "holds something that is no demo", "Choose another --out folder.")])
    for name in (STUDY, RUN):
        shutil.rmtree(out / name, ignore_errors=True)
