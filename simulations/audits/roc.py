"""How well scores tell members from non-members: the ROC curve, and intervals that resample whole patients.

Shapes: B scores, K points of a curve, S resamples, P patients, R rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flexmoe_core.scores import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
FEWEST_FALSE_POSITIVES = 10
"""What a false-positive rate must amount to among the non-members before anything is said of it."""


@dataclass(frozen=True, eq=False)
class Roc:
    """Points (false, true positive rate) from (0, 0) to (1, 1), and the number of scores on either side."""

    false_positive_K: FloatArray
    true_positive_K: FloatArray
    members: int
    non_members: int

    @property
    def auc(self) -> float:
        """The area below the curve; ties count half."""
        return _area(self.false_positive_K, self.true_positive_K)

    @property
    def lowest_rate(self) -> float:
        """Below this false-positive rate there are too few non-members to say anything."""
        return FEWEST_FALSE_POSITIVES / self.non_members

    def true_positive_rate(self, false_positive_rate: float) -> float | None:
        """The highest at no more than this false-positive rate; None below ``lowest_rate``."""
        if false_positive_rate < self.lowest_rate:
            return None
        return float(self.true_positive_K[_last_within(self.false_positive_K, false_positive_rate)])


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; the value is None where there are too few scores."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Separation:
    """The AUC, and the true-positive rate at each of some false-positive rates."""

    members: int
    non_members: int
    auc: Estimate
    at_rate: tuple[Estimate, ...]


def roc_of(scores_B: FloatArray, is_member_B: BoolArray) -> Roc:
    """High scores stand for members. Raises ValueError where one side is empty or a score is NaN."""
    members = int(is_member_B.sum())
    if members in (0, len(scores_B)) or np.isnan(scores_B).any():
        raise ValueError("a ROC curve needs members, non-members, and numbers as scores")
    ladder = _Ladder(scores_B, is_member_B)
    return Roc(*ladder.rates(np.ones(len(scores_B))), members, len(scores_B) - members)


def separation(
    scores_B: FloatArray,
    is_member_B: BoolArray,
    patient_B: IntArray,
    rates: Sequence[float],
    generator: np.random.Generator,
    resamples: int = 1000,
) -> Separation | None:
    """All that a table says of some scores; None where one side is empty.

    One patient may have several scores (one from each of several federations): patients are resampled, with all that
    they have. Their number says how much is known; that of their scores does not.
    """
    members = int(is_member_B.sum())
    if members in (0, len(scores_B)):
        return None
    curve = roc_of(scores_B, is_member_B)
    auc_S, rates_SR = _resampled(scores_B, is_member_B, patient_B, rates, generator, resamples)
    at_rate = tuple(
        Estimate(None) if value is None else Estimate(value, *_percentiles(values_S))
        for value, values_S in zip(map(curve.true_positive_rate, rates), rates_SR.T, strict=True)
    )
    return Separation(members, curve.non_members, Estimate(curve.auc, *_percentiles(auc_S)), at_rate)


class _Ladder:
    """Scores in descending order, equal ones on one rung: any weights then give a curve by two running sums."""

    def __init__(self, scores_B: FloatArray, is_member_B: BoolArray) -> None:
        self.order_B = np.argsort(-scores_B, kind="stable")
        self.is_member_B = is_member_B[self.order_B]
        ordered_B = scores_B[self.order_B]
        self.last_K = np.append(np.flatnonzero(ordered_B[1:] != ordered_B[:-1]), len(ordered_B) - 1)

    def rates(self, weights_B: FloatArray) -> tuple[FloatArray, FloatArray]:
        """False and true positive rates (K,); NaN for a side without weight."""
        ordered_B = weights_B[self.order_B]
        false_K = np.cumsum(ordered_B * ~self.is_member_B)[self.last_K]
        true_K = np.cumsum(ordered_B * self.is_member_B)[self.last_K]
        with np.errstate(invalid="ignore"):
            return np.append(0.0, false_K / false_K[-1]), np.append(0.0, true_K / true_K[-1])


def _resampled(
    scores_B: FloatArray,
    is_member_B: BoolArray,
    patient_B: IntArray,
    rates: Sequence[float],
    generator: np.random.Generator,
    resamples: int,
) -> tuple[FloatArray, FloatArray]:
    """AUC (S,) and true-positive rates (S, R) of patients drawn with replacement."""
    ladder = _Ladder(scores_B, is_member_B)
    _, place_B = np.unique(patient_B, return_inverse=True)
    patients = int(place_B.max()) + 1
    auc_S, rates_SR = np.empty(resamples), np.empty((resamples, len(rates)))
    for draw in range(resamples):
        weights_P = np.bincount(generator.integers(patients, size=patients), minlength=patients)
        false_K, true_K = ladder.rates(weights_P[place_B].astype(np.float64))
        auc_S[draw] = _area(false_K, true_K)
        rates_SR[draw] = [true_K[_last_within(false_K, rate)] for rate in rates]
    return auc_S, rates_SR


def _area(false_positive_K: FloatArray, true_positive_K: FloatArray) -> float:
    """Below straight lines from point to point."""
    return float(np.diff(false_positive_K) @ (true_positive_K[1:] + true_positive_K[:-1]) / 2)


def _last_within(false_positive_K: FloatArray, rate: float) -> int:
    return int(np.searchsorted(false_positive_K, rate * (1 + 1e-12), side="right")) - 1


def _percentiles(values_S: FloatArray) -> tuple[float | None, float | None]:
    if np.isnan(values_S).all():
        return None, None
    low, high = np.nanquantile(values_S, [0.025, 0.975])
    return float(low), float(high)
