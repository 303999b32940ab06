"""Test metrics with their bootstrap intervals, or in words why there is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from flexmoe_core.intervals import bootstrap_interval
from flexmoe_core.score_metrics import METRICS, MINIMUM_CLASS_COUNT
from flexmoe_core.scores import Scores

METRIC_TITLES: Mapping[str, str] = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "auprc": "AUPRC",
    "macro_f1": "Macro-F1",
    "brier": "Brier score",
    "log_loss": "Log-loss",
    "ece": "ECE",
}
WITH_INTERVAL = ("auroc", "accuracy")
RANKINGS = ("auroc", "auprc")


@dataclass(frozen=True)
class Estimate:
    """A metric; ``value`` None says that it is undefined, for the given reason."""

    value: float | None
    interval: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of some test patients, and their number by class."""

    n: int
    class_counts: tuple[int, ...]
    estimates: Mapping[str, Estimate]


def evaluate(
    scores: Scores,
    classes: tuple[str, ...],
    generator: np.random.Generator,
    with_interval: Collection[str] = WITH_INTERVAL,
    if_empty: str = "no test patients",
) -> Evaluation:
    """Every metric of the page; ``if_empty`` is the reason to give where there are no patients."""
    estimates = {}
    for metric in METRIC_TITLES:
        value = METRICS[metric].compute(scores) if scores.n else None
        interval = bootstrap_interval(scores, metric, generator) if scores.n and metric in with_interval else None
        reason = "" if value is not None else why_undefined(metric, scores, classes) if scores.n else if_empty
        estimates[metric] = Estimate(value, interval, reason)
    return Evaluation(scores.n, tuple(map(int, scores.confusion_YY.sum(axis=1))), estimates)


def why_undefined(metric: str, scores: Scores, classes: tuple[str, ...]) -> str:
    """Which class has too few patients, in it or outside it, for a metric."""
    counts = dict(zip(classes, map(int, scores.confusion_YY.sum(axis=1)), strict=True))
    few, n_few = min(counts.items(), key=lambda item: item[1])
    if metric not in RANKINGS:
        return f"nobody is '{few}'"
    if n_few < MINIMUM_CLASS_COUNT:
        return f"only {n_few} '{few}'" if n_few else f"nobody is '{few}'"
    many, n_many = max(counts.items(), key=lambda item: item[1])
    return f"only {scores.n - n_many} not '{many}'"
