"""The benchmark on real hospitals: per seed prepare, train, compare; one line of results.jsonl each.

A benchmark that was stopped goes on with the seeds that have no line yet.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import FrozenModel
from server.settings import RunSettings
from simulations.comparison import ComparisonTable, compare
from simulations.datasets.uci_heart import Protocol, prepare_uci_heart
from simulations.results import RESULTS, append_line, read_lines, run_each
from simulations.runs import simulate

STUDY, RUN = "hospitals", "run"


class BenchmarkTerms(FrozenModel):
    """What all seeds of a benchmark have in common; the seed in ``settings`` is that of each line."""

    dataset: Literal["uci-heart"] = "uci-heart"
    protocol: Protocol
    validation: float
    settings: RunSettings


class SeedResult(FrozenModel):
    """One line of results.jsonl."""

    terms: BenchmarkTerms
    seed: int
    table: ComparisonTable
    training_seconds: float
    comparison_seconds: float


def run_benchmark(
    out: Path, terms: BenchmarkTerms, seeds: Sequence[int], processes: int = 0
) -> Iterator[tuple[SeedResult, bool]]:
    """Each seed's result as soon as it is there, and whether it is new. Stored ones come first.

    With ``processes``, that many seeds run beside each other. Raises InputError where ``out`` holds the results
    of other terms, and what a run raises.
    """
    stored = {result.seed: result for result in read_results(out)}
    if any(_common(result.terms) != _common(terms) for result in stored.values()):
        what = "holds results of another protocol, validation share or settings"
        raise InputError([Problem(str(out / RESULTS), "", what, "Choose another --out folder.")])
    for seed in seeds:
        if seed in stored:
            yield stored[seed], False
    wanted = [seed for seed in seeds if seed not in stored]
    beside = processes > 1 and len(wanted) > 1
    work = partial(run_seed, out, terms, processes=0 if beside else processes)
    for result in run_each(work, wanted, processes):
        append_line(out / RESULTS, result)
        yield result, True


def run_seed(out: Path, terms: BenchmarkTerms, seed: int, processes: int | None) -> SeedResult:
    """Prepare, train and compare in ``out/seed-<n>``, which is made anew."""
    folder = out / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = terms.settings.model_copy(update={"seed": seed})
    prepare_uci_heart(folder / STUDY, terms.protocol, seed, terms.validation)
    started = time.monotonic()
    store = simulate(folder / STUDY, folder / RUN, settings)
    trained = time.monotonic()
    table = compare(folder / STUDY, store, seed, processes=processes)
    return SeedResult(
        terms=terms.model_copy(update={"settings": settings}),
        seed=seed,
        table=table,
        training_seconds=round(trained - started, 2),
        comparison_seconds=round(time.monotonic() - trained, 2),
    )


def read_results(out: Path) -> list[SeedResult]:
    """All results in a folder. Raises InputError for a line that is none."""
    return read_lines(out / RESULTS, SeedResult)


def _common(terms: BenchmarkTerms) -> BenchmarkTerms:
    return terms.model_copy(update={"settings": terms.settings.model_copy(update={"seed": 0})})
