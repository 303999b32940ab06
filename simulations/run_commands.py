"""The command ``flexmoe-sim run``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.site_data import read_site
from flexmoe_core.devices import AUTOMATIC, choose_device
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.settings import DEFAULT_PRESET, PRESETS
from flexmoe_core.study import load_study
from server.progress import round_progress
from server.report.page import write_report
from server.run_store import RunStore
from server.settings import RunSettings, settings_with
from simulations.runs import Engine, require_quorum, simulate, site_folders

TRAINING_SPLITS = ("train", "validation")

StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder with study.toml and the site folders.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. method.model.width=64. Repeatable."),
]
Processes = Annotated[
    int, typer.Option(min=0, help="Worker processes of the inprocess engine; 0 trains site after site.")
]


class EngineName(StrEnum):
    """Where the sites run."""

    inprocess = "inprocess"
    ray = "ray"


def run(
    folder: StudyFolder,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Run folder to create, or to continue with --resume.")],
    engine: Annotated[
        EngineName, typer.Option(help="inprocess: this program. ray: Flower's simulation engine.")
    ] = EngineName.inprocess,
    rounds: Annotated[int | None, typer.Option(min=1, help="Short for --set federation.rounds=N.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same result.")] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Sizes to start from: {', '.join(PRESETS)}. Without it: {DEFAULT_PRESET}.")
    ] = None,
    overrides: Overrides = None,
    processes: Processes = 0,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:1: where the inprocess engine trains.")
    ] = AUTOMATIC,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue RUN with its own config.toml, from its last round.")
    ] = False,
) -> None:
    """Train one federation over the site folders in DIR and write RUN.

    RUN holds metrics.json, history.jsonl, checkpoint/, config.toml (every setting) and report.html. Exit code 1:
    too few rounds could be aggregated. Exit code 2: something in the input is wrong; nothing was written.
    """
    console = Console()
    changes = [*(overrides or []), *([f"federation.rounds={rounds}"] if rounds else [])]
    machine: list[Callable[[], object]] = [
        partial(_check_engine, engine, processes, device),
        partial(choose_device, device),
    ]
    settings = _checked(folder, resume, changes, preset, seed, machine)
    total = (settings or RunStore.open(out).settings).federation.rounds
    store = train(console, folder, out, settings, total, engine.value, processes, device)
    console.print(f"Results   {store.folder / 'metrics.json'}", highlight=False)
    console.print(f"Report    {write_report(store.folder)}", highlight=False)


def train(
    console: Console,
    folder: Path,
    out: Path,
    settings: RunSettings | None,
    rounds: int,
    engine: Engine = "inprocess",
    processes: int = 0,
    device: str = AUTOMATIC,
) -> RunStore:
    """Run the federation while the terminal shows its progress."""
    if engine == "ray":
        with console.status("Training in Flower's simulation engine; history.jsonl grows with every round"):
            return simulate(folder, out, settings, engine="ray")
    with round_progress(console, rounds) as observe:
        return simulate(folder, out, settings, observe=observe, processes=processes, device=device)


def check_folders(folder: Path) -> None:
    """Raise InputError with the problems of the study and of every site, before anything is written.

    Labels of test patients stay unread.
    """
    study = load_study(folder / "study.toml")
    raise_all(partial(read_site, site, study, TRAINING_SPLITS) for site in site_folders(folder).values())


def raise_all(checks: Iterable[Callable[[], object]]) -> None:
    """Call every check, and raise one InputError with the problems of all of them."""
    problems: list[Problem] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)


def _checked(
    folder: Path,
    resume: bool,
    changes: list[str],
    preset: str | None,
    seed: int | None,
    checks: Sequence[Callable[[], object]],
) -> RunSettings | None:
    """The settings of a new run, None for an old one; raises InputError with all that is wrong with the command."""
    chosen = partial(_settings, resume, changes, preset, seed)
    raise_all([*checks, chosen, partial(check_folders, folder)])
    settings = chosen()
    if settings is not None:
        require_quorum(settings, site_folders(folder), "--set")
    return settings


def _check_engine(engine: EngineName, processes: int, device: str) -> None:
    given = {"--processes": processes > 0, "--device": device != AUTOMATIC}
    wrong = [option for option, is_given in given.items() if is_given] if engine is EngineName.ray else []
    remedy = "Leave it out: Ray has its own worker processes and gives out the GPUs."
    if wrong:
        raise InputError(Problem(option, "", "is for the inprocess engine", remedy) for option in wrong)


def _settings(resume: bool, changes: list[str], preset: str | None, seed: int | None) -> RunSettings | None:
    if not resume:
        return settings_with(changes, preset or DEFAULT_PRESET, seed)
    if changes or seed is not None or preset is not None:
        remedy = "Leave out --set, --rounds, --preset and --seed: a run goes on with the settings that it began with."
        raise InputError([Problem("--resume", "", "cannot be combined with new settings", remedy)])
    return None
