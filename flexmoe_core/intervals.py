"""Bootstrap intervals: of additive scores by resampling their bins, of predictions by resampling patients.

Drawing patients with replacement is drawing the cells of their joint histogram from a multinomial, so that a
coordinator who holds counts alone can do it, for every metric that one joint histogram determines:

- accuracy, macro-F1: the confusion matrix.
- AUROC, AUPRC of two classes: (class, probability bin).
- Brier of two classes: (class, probability bin), each patient's error taken at the bin's center, and the
  resampled values moved by the difference between the exact and the binned Brier score.
- ECE: (confidence bin, correct or not), each patient's confidence taken as the mean of the bin.

AUROC, AUPRC and Brier of more classes need the joint distribution of all probabilities, and the log-loss is
ruled by patients in the open outermost bins: these have no interval here.

Shapes: S resamples, B patients, Y classes, G probability bins, R reliability bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from flexmoe_core.score_metrics import (
    METRICS,
    accuracy_of_counts,
    auroc_of_counts,
    average_precision_of_counts,
    ece_of_counts,
    macro_f1_of_counts,
)
from flexmoe_core.scores import FloatArray, IntArray, Scores, probability_centers

Predictions = TypeVar("Predictions", bound=np.generic)


def bootstrap_interval(
    scores: Scores, metric: str, generator: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float] | None:
    """The interval of a metric of ``METRICS`` by percentiles; None where it is undefined or has no interval.

    The interval of ECE is the one of ``_interval_of_ece``. Raises KeyError for an unknown metric.
    """
    estimate = METRICS[metric].compute(scores)
    if estimate is None:
        return None
    if metric == "ece":
        return _interval_of_ece(scores, estimate, generator, resamples, level)
    values_S = _resampled(scores, metric, estimate, generator, resamples)
    return None if values_S is None else _percentiles(values_S, level)


def paired_bootstrap_difference(
    metric: Callable[[npt.NDArray[Predictions], IntArray], float | None],
    probabilities_a_BY: npt.NDArray[Predictions],
    probabilities_b_BY: npt.NDArray[Predictions],
    labels_B: IntArray,
    generator: np.random.Generator,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    strata_B: IntArray | None = None,
) -> tuple[float, float, float] | None:
    """How much better a predicts than b for the same patients: (metric of a - metric of b, low, high).

    Both models meet the same patients in every resample. ``metric`` gets (predictions, labels), the predictions
    with whatever axes follow the first; resamples in which it is None are left out. The patients of each of
    ``strata_B`` (a site, a class) are resampled among themselves. None if the metric is undefined for the patients
    as they are, or in every resample.
    """

    def difference(index_B: IntArray) -> float | None:
        a = metric(probabilities_a_BY[index_B], labels_B[index_B])
        b = metric(probabilities_b_BY[index_B], labels_B[index_B])
        return None if a is None or b is None else a - b

    estimate = difference(np.arange(len(labels_B)))
    if estimate is None:
        return None
    strata_B = np.zeros(len(labels_B), np.int64) if strata_B is None else strata_B
    members = [np.flatnonzero(strata_B == stratum) for stratum in np.unique(strata_B)]
    values = (
        difference(np.concatenate([generator.choice(index, len(index)) for index in members]))
        for _ in range(resamples)
    )
    defined_S = np.array([value for value in values if value is not None])
    return (estimate, *_percentiles(defined_S, level)) if len(defined_S) else None


def auroc_of(probabilities_B: npt.NDArray[np.floating], labels_B: npt.NDArray[np.integer]) -> float | None:
    """Exact AUROC (Mann-Whitney, ties half) of label 1 against label 0; None if one of them is absent."""
    positives, negatives = probabilities_B[labels_B == 1], np.sort(probabilities_B[labels_B == 0])
    pairs = len(positives) * len(negatives)
    if not pairs:
        return None
    below = np.searchsorted(negatives, positives, side="left").sum()
    below_or_tied = np.searchsorted(negatives, positives, side="right").sum()
    return float(below + below_or_tied) / (2 * pairs)


def _resampled(
    scores: Scores, metric: str, estimate: float, generator: np.random.Generator, resamples: int
) -> FloatArray | None:
    """(S,) values of the metric for patients drawn with replacement, NaN where undefined."""
    if metric in ("accuracy", "macro_f1"):
        confusion_SYY = _redrawn(scores.confusion_YY, generator, resamples)
        return (accuracy_of_counts if metric == "accuracy" else macro_f1_of_counts)(confusion_SYY)
    if metric == "log_loss" or scores.classes > 2:
        return None
    histogram_S2G = _redrawn(scores.histogram_Y2G[1], generator, resamples)
    if metric == "auroc":
        return auroc_of_counts(histogram_S2G)
    if metric == "auprc":
        return average_precision_of_counts(histogram_S2G)
    error_2G = (probability_centers() - np.array([[0], [1]])) ** 2
    binned = float((scores.histogram_Y2G[1] * error_2G).sum() / scores.n)
    values_S: FloatArray = np.einsum("sag,ag->s", histogram_S2G, error_2G) / scores.n
    return np.maximum(0.0, values_S + (estimate - binned))


def _interval_of_ece(
    scores: Scores, estimate: float, generator: np.random.Generator, resamples: int, level: float
) -> tuple[float, float]:
    """The basic interval, twice the estimate minus the percentiles (Davison and Hinkley 1997, section 5.2).

    ECE is biased upward and a resample has the same bias once more, so that percentiles would hardly ever reach
    down to the true value. A perfectly calibrated model has a positive ECE too: where the estimate is no larger
    than such a model would give for these confidences (consistency resampling, Bröcker and Smith 2007), the
    interval begins at 0.
    """
    count_R, confidence_R, correct_R = scores.reliability_R3.T
    mean_confidence_R = np.minimum(confidence_R / np.maximum(count_R, 1), 1.0)
    outcomes_R2 = np.stack([count_R - correct_R, correct_R], axis=1).astype(np.int64)
    outcomes_SR2 = _redrawn(outcomes_R2, generator, resamples)
    count_SR = outcomes_SR2.sum(axis=2)
    resampled_S = ece_of_counts(count_SR, count_SR * mean_confidence_R, outcomes_SR2[:, :, 1])
    calibrated_SR = generator.binomial(count_R.astype(np.int64), mean_confidence_R, (resamples, len(count_R)))
    calibrated_S = ece_of_counts(count_R, confidence_R, calibrated_SR)
    low, high = _percentiles(resampled_S, level)
    is_calibrated = estimate <= np.quantile(calibrated_S, level)
    return 0.0 if is_calibrated else max(0.0, 2 * estimate - high), max(0.0, 2 * estimate - low)


def _redrawn(counts: IntArray, generator: np.random.Generator, resamples: int) -> IntArray:
    """(S, *shape of counts): as many patients as there are, drawn with replacement, S times."""
    cells = np.flatnonzero(counts)  # few of the bins hold anybody, and a multinomial costs by the cell
    patients = counts.ravel()[cells]
    redrawn = np.zeros((resamples, counts.size), np.int64)
    redrawn[:, cells] = generator.multinomial(patients.sum(), patients / patients.sum(), size=resamples)
    return redrawn.reshape(resamples, *counts.shape)


def _percentiles(values_S: FloatArray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.nanquantile(values_S, [tail, 1 - tail])
    return float(low), float(high)
