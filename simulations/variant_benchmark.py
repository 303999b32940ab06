"""Each method on each data set with each seed: a job, and a line of results.jsonl.

A job that has its line, with the same settings, is not run again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flexmoe_core.study import load_study
from flexmoe_core.validation import FrozenModel
from server.settings import RunSettings
from simulations.baselines.predictions import Predictions, bundle_predictions, pooled, read_sites
from simulations.benchmark_data import DataSet
from simulations.comparison import Result, result_of
from simulations.datasets.mean_fill import mean_filled
from simulations.datasets.site_folders import write_site_folders
from simulations.results import RESULTS, run_kept
from simulations.runs import simulate, site_bundle, site_folders
from simulations.variants import BASELINES, VARIANTS, Hospitals, title_of


class Job(FrozenModel):
    """One method on one data set. ``settings`` are those of its training, None where it trains no model of ours."""

    data: DataSet
    method: str
    seed: int
    settings: RunSettings | None


class JobResult(FrozenModel):
    """The metrics of all test patients (site None) and of each hospital's, and how long the job took."""

    job: Job
    results: tuple[Result, ...]
    seconds: float


def jobs_of(
    data: Iterable[DataSet], methods: Sequence[str], seeds: Iterable[int], settings: RunSettings
) -> list[Job]:
    """Every method on every data set, seed by seed: what is stopped early still has whole seeds."""
    chosen = list(data)
    return [
        Job(data=one, method=method, seed=seed, settings=_settings_of(method, seed, settings))
        for seed in seeds
        for one in chosen
        for method in methods
    ]


def run_jobs(out: Path, jobs: Sequence[Job], processes: int = 0) -> Iterator[tuple[JobResult, bool]]:
    """Each job's result as soon as it is there, and whether it is new. Stored ones come first.

    With ``processes``, that many jobs run beside each other. Raises InputError, and what a run raises.
    """
    return run_kept(out / RESULTS, run_job, jobs, JobResult, lambda result: result.job, processes)


def run_job(job: Job) -> JobResult:
    """Write the site folders, train, and score the test patients; nothing but the result stays."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        predictions = _predict(job, Path(scratch))
    title = title_of(job.method)
    of_sites = (result_of(site, title, predicted) for site, predicted in predictions.items())
    results = (result_of(None, title, pooled(predictions)), *of_sites)
    return JobResult(job=job, results=results, seconds=round(time.monotonic() - started, 2))


def _predict(job: Job, scratch: Path) -> Predictions:
    patients, folder = job.data.load(job.seed), scratch / "hospitals"
    variant = VARIANTS.get(job.method)
    write_site_folders(folder, mean_filled(patients) if variant and variant.fills_means else patients)
    folders, study = site_folders(folder), load_study(folder / "study.toml")
    sites, settings = read_sites(folders, study), job.settings or RunSettings(seed=job.seed)
    if variant is None:
        return BASELINES[job.method].predict(Hospitals(study, folders, sites), settings)
    store = simulate(folder, scratch / "run", settings)
    return {name: bundle_predictions(site_bundle(store, name), data) for name, data in sites.items()}


def _settings_of(method: str, seed: int, settings: RunSettings) -> RunSettings | None:
    seeded = settings.model_copy(update={"seed": seed})
    if method in VARIANTS:
        return seeded.model_copy(update={"method": VARIANTS[method].change(settings.method)})
    return seeded if BASELINES[method].trains_model else None
