"""The commands ``flexmoe-sim study ...``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import suggestion
from simulations.audits.output import show_and_write
from simulations.benchmark_data import DataSet, Digits, UciHeart
from simulations.benchmark_options import Out, Overrides, parse_seeds
from simulations.datasets.multiple_features import NAME as DIGITS
from simulations.datasets.multiple_features import packaged_tables
from simulations.progress import job_progress
from simulations.studies.privacy_arms import Arm, arms_of
from simulations.studies.privacy_findings import findings_of
from simulations.studies.privacy_jobs import Job, JobResult, jobs_of, run_jobs
from simulations.studies.privacy_report import privacy_report

HEART = "uci-heart"
ALL = f"{HEART},{DIGITS}"
VALIDATION = 0.15
EPSILONS, QUICK_EPSILONS = "1,3,8", "1,8"
SEEDS, QUICK_SEEDS = "0-4", "0-1"
QUICK = ("federation.rounds=12", "method.curriculum.generalize_rounds=1")

study = typer.Typer(no_args_is_help=True, help="What a choice costs and what it buys, over data sets and seeds.")


@study.callback()
def _group() -> None:
    """A group also while it has but one command."""


@study.command("privacy")
def privacy(
    out: Out,
    quick: Annotated[
        bool, typer.Option("--quick", help="UCI heart, two seeds, two epsilons, twelve rounds: to see that it works.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(metavar="NAMES", help=f"Some of {ALL}.", show_default=f"all; {HEART} if quick")
    ] = None,
    epsilons: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="Beside infinity.", show_default=f"{EPSILONS}; {QUICK_EPSILONS} if quick"
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Such as 0-4 or 0,3,7.", show_default=f"{SEEDS}; {QUICK_SEEDS} if quick")
    ] = None,
    overrides: Overrides = None,
    processes: Annotated[
        int, typer.Option(min=0, help="Jobs to run beside each other; 0 or 1: one after the other.")
    ] = 0,
) -> None:
    """What privacy costs in utility, and what it buys against an attack.

    Patient-level and site-level privacy at each epsilon, secure aggregation alone, and no protection; logistic
    regression under the same accounting beside them. Run again with the same --out, it goes on with what is not in
    results.jsonl. Writes privacy.html, privacy.md, and CSV files, plots as PNG and SVG of each data set.
    """
    console = Console()
    chosen = _available(console, parse_data(data or (HEART if quick else ALL)), is_named=data is not None)
    arms = arms_of(parse_epsilons(epsilons or (QUICK_EPSILONS if quick else EPSILONS)))
    changes = [*(QUICK if quick else ()), *(overrides or [])]
    jobs = jobs_of(chosen, arms, parse_seeds(seeds or (QUICK_SEEDS if quick else SEEDS)), changes)
    _study(console, out, jobs, arms, processes)


def parse_data(text: str) -> list[str]:
    """The named data sets, in the order of the study; raises InputError."""
    named, known = [part.strip() for part in text.split(",") if part.strip()], ALL.split(",")
    problems = [
        Problem("--data", name, "is no data set of this study", suggestion(name, known))
        for name in named
        if name not in known
    ]
    if problems or not named:
        raise InputError(problems or [Problem("--data", text, "names no data set", f"Write {ALL}.")])
    return [name for name in known if name in named]


def parse_epsilons(text: str) -> list[float]:
    """``1,8`` is 1.0, 8.0, ascending; raises InputError for anything else than positive numbers."""
    found = set()
    for part in text.split(","):
        try:
            epsilon = float(part)
        except ValueError:
            epsilon = 0.0
        if not 0 < epsilon < float("inf"):
            remedy = "Write 1,3,8. Infinity is always part of the study."
            raise InputError([Problem("--epsilons", part.strip(), "is no positive number", remedy)])
        found.add(epsilon)
    return sorted(found)


def _available(console: Console, names: Sequence[str], is_named: bool) -> list[DataSet]:
    """The data sets; one that is not installed is left out, and said to be, unless it was asked for by name."""
    sets: dict[str, DataSet] = {
        HEART: UciHeart(protocol="flamby", validation=VALIDATION),
        DIGITS: Digits(sites=8, missing=0.3, validation=VALIDATION),
    }
    try:
        packaged_tables()
    except InputError as error:
        if is_named and DIGITS in names:
            raise
        if DIGITS in names:
            console.print(f"Left out  {error}", highlight=False)
        sets.pop(DIGITS)
    return [sets[name] for name in names if name in sets]


def _study(console: Console, out: Path, jobs: Sequence[Job], arms: Sequence[Arm], processes: int) -> None:
    """Run all jobs and write the report: also of what is there when one of them fails."""
    results: list[JobResult] = []
    try:
        with job_progress(console, len(jobs)) as advance:
            for result, _ in run_jobs(out, jobs, processes):
                results.append(result)
                advance(f"{result.job.arm.title}, seed {result.job.seed}, {result.job.data.title}")
    finally:
        if results:
            show_and_write(console, out, privacy_report(findings_of(results, arms)))
