"""Metrics of a site, a combination or the pool, derived from additive scores.

The functions ``..._of_counts`` take any leading axes (bootstrap resamples) and give NaN where undefined; functions
of ``Scores`` give None there.

Shapes: Y classes, G probability bins, R reliability bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from flexmoe_core.scores import FloatArray, IntArray, Scores

MINIMUM_CLASS_COUNT = 10  # of positives and of negatives: a ranking of fewer is mostly chance
SUMMARY_METRICS = ("accuracy", "macro_f1", "auroc", "auprc", "brier", "ece")


@dataclass(frozen=True)
class Metric:
    """A named number derived from scores, None where it is undefined."""

    name: str
    compute: Callable[[Scores], float | None]
    higher_is_better: bool


def summary(scores: Scores) -> dict[str, float | int | None]:
    """``n``, ``n_positive`` (of class 1; None unless there are two classes) and the usual metrics."""
    n_positive = int(scores.confusion_YY[1].sum()) if scores.classes == 2 else None
    metrics = {name: METRICS[name].compute(scores) for name in SUMMARY_METRICS}
    return {"n": scores.n, "n_positive": n_positive, **metrics}


def accuracy(scores: Scores) -> float | None:
    """The share of patients whose predicted class is the true one."""
    return _defined(accuracy_of_counts(scores.confusion_YY))


def macro_f1(scores: Scores) -> float | None:
    """The mean F1 of the classes; None if no patient is of some class."""
    return _defined(macro_f1_of_counts(scores.confusion_YY))


def auroc(scores: Scores) -> float | None:
    """Area under the ROC curve of class 1, or the mean of all classes against the rest if there are several.

    Patients in one bin are tied, and a tie counts half. None if a class has fewer than
    ``MINIMUM_CLASS_COUNT`` patients in it or outside it.
    """
    return _ranking(scores, auroc_of_counts)


def auroc_bounds(scores: Scores) -> tuple[float, float] | None:
    """The least and greatest AUROC that the unbinned predictions can have: all ties lost, all ties won."""
    return _interval(
        _ranking(scores, lambda histogram: auroc_of_counts(histogram, tie_share=0.0)),
        _ranking(scores, lambda histogram: auroc_of_counts(histogram, tie_share=1.0)),
    )


def auprc(scores: Scores) -> float | None:
    """Average precision with the bins as thresholds, of class 1 or the mean of several; None as ``auroc``."""
    return _ranking(scores, average_precision_of_counts)


def auprc_bounds(scores: Scores) -> tuple[float, float] | None:
    """The least and greatest average precision that the unbinned predictions can have.

    Least: in each bin every negative comes before the positives, which come one by one. Greatest: the positives of
    a bin come first, at one threshold (one by one they would have a lower precision at the start).
    """
    return _interval(
        _ranking(scores, _least_average_precision),
        _ranking(scores, lambda histogram: average_precision_of_counts(histogram, ties_won=True)),
    )


def brier(scores: Scores) -> float | None:
    """Mean squared error of the probability of class 1, or summed over several classes."""
    return scores.squared_error / scores.n if scores.n else None


def log_loss(scores: Scores) -> float | None:
    """Mean of -log p of the true class, in nats."""
    return scores.log_loss / scores.n if scores.n else None


def ece(scores: Scores) -> float | None:
    """Expected calibration error of the predicted class, in equal-width bins (Guo et al. 2017, eq. 3)."""
    count_R, confidence_R, correct_R = scores.reliability_R3.T
    return _defined(ece_of_counts(count_R, confidence_R, correct_R))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("accuracy", accuracy, higher_is_better=True),
            Metric("macro_f1", macro_f1, higher_is_better=True),
            Metric("auroc", auroc, higher_is_better=True),
            Metric("auprc", auprc, higher_is_better=True),
            Metric("brier", brier, higher_is_better=False),
            Metric("log_loss", log_loss, higher_is_better=False),
            Metric("ece", ece, higher_is_better=False),
        )
    }
)


def accuracy_of_counts(confusion_YY: IntArray) -> FloatArray:
    """(..., Y, Y) to (...)."""
    return _ratio(np.trace(confusion_YY, axis1=-2, axis2=-1), confusion_YY.sum(axis=(-2, -1)))


def macro_f1_of_counts(confusion_YY: IntArray) -> FloatArray:
    """(..., Y, Y) to (...), NaN where a class is absent from the truth."""
    true_Y, predicted_Y = confusion_YY.sum(axis=-1), confusion_YY.sum(axis=-2)
    hits_Y = np.diagonal(confusion_YY, axis1=-2, axis2=-1)
    f1_Y = _ratio(2 * hits_Y, true_Y + predicted_Y)
    return np.where((true_Y > 0).all(axis=-1), f1_Y.mean(axis=-1), np.nan)


def auroc_of_counts(histogram_2G: IntArray, tie_share: float = 0.5) -> FloatArray:
    """(..., 2, G) to (...): the share of (positive, negative) pairs in order, a tie worth ``tie_share``."""
    negative_G, positive_G = histogram_2G[..., 0, :], histogram_2G[..., 1, :]
    below_G = negative_G.cumsum(axis=-1) - negative_G
    won = (positive_G * (below_G + tie_share * negative_G)).sum(axis=-1)
    return _ratio(won, positive_G.sum(axis=-1) * negative_G.sum(axis=-1))


def average_precision_of_counts(histogram_2G: IntArray, ties_won: bool = False) -> FloatArray:
    """(..., 2, G) to (...): each bin's precision, weighted by its positives.

    With ``ties_won`` the positives of a bin are a threshold of their own, above its negatives.
    """
    negative_G, positive_G = histogram_2G[..., 0, ::-1], histogram_2G[..., 1, ::-1]
    false_G, true_G = negative_G.cumsum(axis=-1), positive_G.cumsum(axis=-1)
    predicted_G = true_G + false_G - (negative_G if ties_won else 0)
    precision_G = np.nan_to_num(_ratio(true_G, predicted_G))  # a bin before the first patient has no weight
    return _ratio((positive_G * precision_G).sum(axis=-1), true_G[..., -1])


def ece_of_counts(
    count_R: IntArray | FloatArray, confidence_R: FloatArray, correct_R: IntArray | FloatArray
) -> FloatArray:
    """(..., R) patients, sums of confidence and correct patients to (...)."""
    return _ratio(np.abs(confidence_R - correct_R).sum(axis=-1), count_R.sum(axis=-1))


def _least_average_precision(histogram_2G: IntArray) -> FloatArray:
    negative_G, positive_G = histogram_2G[:, ::-1]
    true = np.arange(1, positive_G.sum() + 1)
    false = np.repeat(negative_G.cumsum(), positive_G)
    return np.asarray(np.mean(true / (true + false)))


def _ranking(scores: Scores, compute: Callable[[IntArray], FloatArray]) -> float | None:
    """A metric of class 1 of two, or the mean over several classes against the rest."""
    histograms_2G = scores.histogram_Y2G[1:] if scores.classes == 2 else scores.histogram_Y2G
    if (histograms_2G.sum(axis=-1) < MINIMUM_CLASS_COUNT).any():
        return None
    return float(np.mean([compute(histogram_2G) for histogram_2G in histograms_2G]))


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _ratio(numerator: IntArray | FloatArray, denominator: IntArray | FloatArray) -> FloatArray:
    """The quotient in float64, NaN where the denominator is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.true_divide(numerator, denominator))


def _defined(value: FloatArray) -> float | None:
    return None if np.isnan(value) else float(value)
