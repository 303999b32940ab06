"""Results of the study of privacy that nobody had to train for."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.benchmark_data import DataSet, UciHeart
from simulations.comparison import Result
from simulations.studies.privacy_arms import TITLES, Arm, arms_of
from simulations.studies.privacy_jobs import Job, JobResult
from simulations.studies.privacy_outcomes import Membership

HEART = UciHeart(protocol="flamby", validation=0.15)
AUROC = {
    "patient": 0.90,
    "site": 0.70,
    "secure-aggregation": 0.91,
    "none": 0.91,
    "default": 0.92,
    "logistic": 0.89,
    "pooled-logistic": 0.90,
    "majority": 0.50,
}
REFERENCES = ("pooled-logistic", "majority")


def made_up(job: Job) -> JobResult:
    """A small epsilon costs 0.04 of AUROC; each seed is 0.01 better than the one before."""
    arm = job.arm
    auroc = AUROC[arm.family] + 0.01 * job.seed - (0.04 / arm.epsilon if arm.epsilon else 0.0)
    federation = arm.family not in REFERENCES
    attack = 0.51 + (0.02 if arm.epsilon is None else 0.0)
    membership = Membership(members=566, non_members=100, auc=attack, true_positive_rate=0.12)
    return JobResult(
        job=job,
        results=tuple(_result(arm, site, auroc - below) for site, below in ((None, 0.0), ("a", 0.1), ("b", 0.02))),
        membership=membership if federation else None,
        epsilon=None if arm.epsilon is None else 0.99 * arm.epsilon,
        delta=None if arm.epsilon is None else 1e-3,
        seconds=10.0 + job.seed,
        bytes_up=12_000.0 if federation else None,
        bytes_down=13_000.0 if federation else None,
    )


def made_up_results(
    epsilons: Sequence[float] = (1.0, 8.0), seeds: Sequence[int] = (0, 1, 2), data: Sequence[DataSet] = (HEART,)
) -> list[JobResult]:
    """Of every arm."""
    return [
        made_up(Job(data=one, arm=arm, seed=seed, training=None))
        for one in data
        for seed in seeds
        for arm in arms_of(epsilons)
    ]


def _result(arm: Arm, site: str | None, auroc: float) -> Result:
    values = {"n": 100, "n_positive": 50, "macro_f1": None, "auprc": None, "brier": 0.2, "ece": 0.1}
    measured = {"accuracy": auroc - 0.05, "auroc": None if site == "a" else auroc}
    return Result.model_validate({"site": site, "method": TITLES[arm.family], **values, **measured})
