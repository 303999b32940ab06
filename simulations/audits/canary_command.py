"""The command ``flexmoe-sim audit canary``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from flexmoe_core.errors import RunFailed
from simulations.audits.builds import BROKEN, PLAIN, SHIPPED
from simulations.audits.canary_audit import CanaryResult, CanaryRun, Schedule, audit_canaries
from simulations.audits.canary_report import TITLES, canary_report
from simulations.audits.options import Processes
from simulations.audits.output import show_and_write
from simulations.benchmark_options import Out
from simulations.progress import job_progress
from simulations.results import RESULTS, read_lines

EPSILONS = (1.0, 2.0, 4.0, 8.0)
BROKEN_EPSILON = 2.0


class BrokenBuild(StrEnum):
    """What is wrong with a build that the audit must catch."""

    noise = "noise"
    tokens = "tokens"
    encoder = "encoder"
    all = "all"


class ModelSize(StrEnum):
    """Which model is trained."""

    small = "small"
    paper = "paper"


def canary(
    out: Out,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(min=0.01, help="Claimed epsilon. Repeatable. [default: 1, 2, 4 and 8; 2 with --broken]"),
    ] = None,
    delta: Annotated[float, typer.Option(min=1e-9, max=0.1, help="Of the claim.")] = 1e-5,
    runs: Annotated[int, typer.Option(min=1, help="Training runs of each setting.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of one step each.")] = 1,
    sampling_rate: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Chance of every patient to be in a step.")
    ] = 1.0,
    broken: Annotated[
        BrokenBuild | None,
        typer.Option(
            help="Audit a wrong build instead. noise: a fifth of the noise. tokens: not patients but tokens are "
            "clipped. encoder: encoders are trained without privacy."
        ),
    ] = None,
    size: Annotated[ModelSize, typer.Option(help="small, or the published sizes.")] = ModelSize.small,
    canaries: Annotated[int, typer.Option(min=100, help="Patients who are let in by a coin.")] = 1000,
    ordinary: Annotated[int, typer.Option(min=0, help="Patients who are always there.")] = 200,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Also without privacy, for comparison.")] = True,
    processes: Processes = 0,
) -> None:
    """How much does DP-SGD give away at least? One training run proves a lower bound on epsilon (99% confidence).

    Run again with the same --out, it adds other settings and builds to the same tables. Writes audit.html, audit.md,
    canaries.csv, and pictures. Exit code 1: a claim of the shipped build was refuted.
    """
    builds = _builds(broken)
    claims = epsilon or ([BROKEN_EPSILON] if broken else list(EPSILONS))
    schedule = Schedule(rounds=rounds, sampling_rate=sampling_rate)

    def run_of(build: str, claim: float, number: int) -> CanaryRun:
        return CanaryRun.model_validate(
            {
                "build": build,
                "epsilon": claim,
                "delta": delta,
                "schedule": schedule,
                "size": size.value,
                "canaries": canaries,
                "ordinary": ordinary,
                "number": number,
            }
        )

    jobs = [run_of(build, claim, number) for build in builds for claim in claims for number in range(runs)]
    if plain and broken is None:
        beside = BROKEN_EPSILON if BROKEN_EPSILON in claims else claims[0]
        jobs += [run_of(PLAIN, beside, number) for number in range(runs)]
    console = Console()
    with job_progress(console, len(jobs)) as advance:
        for result in audit_canaries(out, jobs, processes):
            advance(f"{TITLES[result.run.build]}, epsilon {result.run.epsilon:g}: {result.bound:.2f}")
    kept = [one for one in read_lines(out / RESULTS, CanaryResult) if one.run.delta == delta]
    show_and_write(console, out, canary_report(kept))
    _fail_if_refuted([one for one in kept if one.run in jobs])


def _builds(broken: BrokenBuild | None) -> list[str]:
    if broken is None:
        return [SHIPPED]
    return list(BROKEN) if broken is BrokenBuild.all else [broken.value]


def _fail_if_refuted(results: list[CanaryResult]) -> None:
    refuted = [one for one in results if one.run.build == SHIPPED and one.is_caught]
    if refuted:
        claims = ", ".join(f"{one.claimed:.2f} (at least {one.bound:.2f})" for one in refuted)
        raise RunFailed(f"the canaries refute {len(refuted)} of {len(results)} claims of the shipped build: {claims}")
