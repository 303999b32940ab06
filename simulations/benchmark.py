"""The benchmark on real hospitals: per seed prepare, train, compare; one line of results.jsonl each.

A benchmark that was stopped goes on with the seeds that have no line yet.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import FrozenModel
from server.settings import RunSettings
from simulations.comparison import ComparisonTable, compare
from simulations.datasets.uci_heart import Protocol, prepare_uci_heart
from simulations.runs import simulate

RESULTS = "results.jsonl"
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
    for result in _run_all(out, terms, [seed for seed in seeds if seed not in stored], processes):
        _append(out / RESULTS, result)
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
    """All whole lines; a last one that a kill cut short is removed. Raises InputError for any other bad line."""
    file = out / RESULTS
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with file.open("r+b") as opened:
            opened.truncate(len(whole))
    results = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            results.append(SeedResult.model_validate_json(line))
        except ValidationError:
            remedy = "Remove the line to run its seed again, or choose another --out folder."
            raise InputError([Problem(str(file), f"line {number}", "is no result of a seed", remedy)]) from None
    return results


def _run_all(out: Path, terms: BenchmarkTerms, seeds: list[int], processes: int) -> Iterable[SeedResult]:
    if processes < 2 or len(seeds) < 2:
        yield from (run_seed(out, terms, seed, processes) for seed in seeds)
        return
    with ProcessPoolExecutor(min(processes, len(seeds)), mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run_seed, out, terms, seed, 0) for seed in seeds]
        for future in as_completed(running):
            if future.exception() is None:
                yield future.result()
        for future in running:  # a failed seed costs only itself; its error is raised once the others are kept
            future.result()


def _common(terms: BenchmarkTerms) -> BenchmarkTerms:
    return terms.model_copy(update={"settings": terms.settings.model_copy(update={"seed": 0})})


def _append(file: Path, result: SeedResult) -> None:
    line = json.dumps(result.model_dump(mode="json"), sort_keys=True)
    with file.open("a") as opened:
        opened.write(line + "\n")
        opened.flush()
        os.fsync(opened.fileno())
