"""Each arm of the study on each data set with each seed: a job, and a line of results.jsonl."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flexmoe_core.study import load_study
from flexmoe_core.validation import FrozenModel
from server.settings import RunSettings
from simulations.baselines.predictions import Predictions, pooled, read_sites
from simulations.baselines.private_logistic import LogisticSettings
from simulations.benchmark_data import DataSet
from simulations.comparison import Result, result_of
from simulations.datasets.site_folders import write_site_folders
from simulations.results import RESULTS, run_kept
from simulations.runs import site_folders
from simulations.studies.privacy_arms import TITLES, Arm, Training, training_of
from simulations.studies.privacy_outcomes import Membership, Outcome, federated, logistic, reference
from simulations.variants import Hospitals


class Job(FrozenModel):
    """One arm on one data set. ``training`` None: it trains no model of ours."""

    data: DataSet
    arm: Arm
    seed: int
    training: Training | None


class JobResult(FrozenModel):
    """What a job found: metrics of all test patients (site None) and of each hospital's, the attack, and the cost.

    ``epsilon`` is what the site that spent most has spent at ``delta``, None where nothing is guaranteed; bytes are
    those of a site and round.
    """

    job: Job
    results: tuple[Result, ...]
    membership: Membership | None
    epsilon: float | None
    delta: float | None
    seconds: float
    bytes_up: float | None
    bytes_down: float | None


def jobs_of(
    data: Iterable[DataSet], arms: Sequence[Arm], seeds: Iterable[int], changes: Sequence[str] = ()
) -> list[Job]:
    """Every arm on every data set, seed by seed: what is stopped early still has whole seeds. Raises InputError."""
    chosen = list(data)
    return [
        Job(data=one, arm=arm, seed=seed, training=training_of(arm, one, seed, changes))
        for seed in seeds
        for one in chosen
        for arm in arms
    ]


def run_jobs(out: Path, jobs: Sequence[Job], processes: int = 0) -> Iterator[tuple[JobResult, bool]]:
    """Each job's result as soon as it is there, and whether it is new. Stored ones come first.

    With ``processes``, that many jobs run beside each other. Raises InputError, and what a run raises.
    """
    return run_kept(out / RESULTS, run_job, jobs, JobResult, lambda result: result.job, processes)


def run_job(job: Job) -> JobResult:
    """Write the site folders, train, test and attack; nothing but the result stays."""
    patients = job.data.load(job.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "hospitals"
        write_site_folders(folder, patients)
        folders, study = site_folders(folder), load_study(folder / "study.toml")
        hospitals = Hospitals(study, folders, read_sites(folders, study))
        found = _outcome(job, hospitals, folder, Path(scratch) / "run")
    return JobResult(
        job=job,
        results=_results(job.arm, found.predictions),
        membership=found.membership,
        epsilon=found.epsilon,
        delta=found.delta,
        seconds=round(found.seconds, 2),
        bytes_up=found.bytes_up,
        bytes_down=found.bytes_down,
    )


def _outcome(job: Job, hospitals: Hospitals, folder: Path, run_folder: Path) -> Outcome:
    match job.training:
        case RunSettings() as settings:
            return federated(hospitals, folder, run_folder, settings)
        case LogisticSettings() as settings:
            return logistic(hospitals, settings)
        case None:
            return reference(hospitals, job.arm.family, job.seed)


def _results(arm: Arm, predictions: Predictions) -> tuple[Result, ...]:
    title = TITLES[arm.family]
    of_sites = (result_of(site, title, predicted) for site, predicted in predictions.items())
    return (result_of(None, title, pooled(predictions)), *of_sites)
