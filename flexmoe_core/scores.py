"""How well some patients were predicted, as counts that add up over batches, combinations and sites.

Every sum is an int64: counts as they are, real numbers in fixed point (each patient's term is rounded to a
multiple of 2**-32 before it is added). Addition is therefore exact, and the order in which patients or sites are
added never shows.

Shapes: B patients, Y classes, G probability bins, R reliability bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from flexmoe_core.errors import MessageError

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]

PROBABILITY_BINS = 256
RELIABILITY_BINS = 15
FIXED_POINT_SCALE = 2**32
PROBABILITY_FLOOR = 1e-15  # the log-loss of a patient is finite, as in scikit-learn before 1.3
MAXIMUM_PATIENTS = 2**25  # of one message: the largest possible log-loss sum still fits int64 in fixed point
LARGEST_LOGIT = 10.0  # of an inner bin edge; the outermost bins are open
SUM_TOLERANCE = 1e-3  # how far a row of probabilities may be from 1: softmax in bfloat16 is


def probability_edges() -> FloatArray:
    """The G - 1 inner edges of the probability bins, equally spaced in the logit, the middle one exactly 0.5.

    A probability equal to an edge falls right of it.
    """
    half = PROBABILITY_BINS // 2
    logits = np.arange(1 - half, half) * (LARGEST_LOGIT / (half - 1))
    return _sigmoid(logits)


def probability_centers() -> FloatArray:
    """The G probabilities in the middle of the bins, in the logit."""
    half = PROBABILITY_BINS // 2
    logits = (np.arange(PROBABILITY_BINS) - half + 0.5) * (LARGEST_LOGIT / (half - 1))
    return _sigmoid(logits)


def predicted_classes(p_BY: FloatArray) -> IntArray:
    """(B,) the most probable class (ties: the first); of two classes, class 1 if its probability is at least 0.5."""
    predicted_B: IntArray = (p_BY[:, 1] >= 0.5).astype(np.int64) if p_BY.shape[1] == 2 else p_BY.argmax(axis=1)
    return predicted_B


@dataclass(frozen=True, eq=False)
class Scores:
    """Additive counts over some patients.

    - ``confusion_YY``: patients by (true, predicted) class, as ``predicted_classes`` has it.
    - ``histogram_Y2G``: for class k, patients not of it (row 0) and of it (row 1) by the bin of p_k.
    - ``reliability_fixed_R3``: by equal-width bin of the predicted class's probability: patients, fixed-point
      sum of that probability, correctly predicted patients.
    - ``losses_fixed_2``: fixed-point sums of squared error and log-loss.
    """

    confusion_YY: IntArray
    histogram_Y2G: IntArray
    reliability_fixed_R3: IntArray
    losses_fixed_2: IntArray

    @classmethod
    def empty(cls, classes: int) -> Scores:
        """The scores of no patient."""
        return cls(**{name: np.zeros(shape, np.int64) for name, shape in _shapes(classes).items()})

    @classmethod
    def of(cls, probabilities_BY: npt.NDArray[np.floating], labels_B: npt.NDArray[np.integer]) -> Scores:
        """The scores of a batch, B = 0 included.

        Raises ValueError for shapes that do not match, probabilities that are not finite, are negative or do not
        sum to one, and labels outside the classes.
        """
        p_BY = _checked_probabilities(probabilities_BY)
        patients, classes = p_BY.shape
        truth_B = _checked_labels(labels_B, patients, classes)
        rows_B = np.arange(patients)
        predicted_B = predicted_classes(p_BY)
        is_class_BY = truth_B[:, None] == np.arange(classes)
        bins_BY = np.searchsorted(probability_edges(), p_BY, side="right")
        errors_BY = (p_BY - is_class_BY) ** 2
        log_losses_B = -np.log(np.maximum(p_BY[rows_B, truth_B], PROBABILITY_FLOOR))
        squared_errors = errors_BY[:, 1] if classes == 2 else errors_BY
        return cls(
            confusion_YY=_count((truth_B, predicted_B), (classes, classes)),
            histogram_Y2G=_count(
                (np.broadcast_to(np.arange(classes), p_BY.shape), is_class_BY, bins_BY),
                (classes, 2, PROBABILITY_BINS),
            ),
            reliability_fixed_R3=_reliability(p_BY[rows_B, predicted_B], predicted_B == truth_B),
            losses_fixed_2=np.array([_fixed(squared_errors).sum(), _fixed(log_losses_B).sum()], np.int64),
        )

    def __add__(self, other: Scores) -> Scores:
        if self.classes != other.classes:
            raise ValueError(f"scores of {self.classes} and of {other.classes} classes do not add up")
        theirs = other.to_arrays()
        return Scores(**{name: mine + theirs[name] for name, mine in self.to_arrays().items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        theirs = other.to_arrays()
        return all(np.array_equal(mine, theirs[name]) for name, mine in self.to_arrays().items())

    __hash__ = None  # type: ignore[assignment]  # arrays can change, so they have no hash

    @property
    def classes(self) -> int:
        """Number of classes, Y."""
        return len(self.confusion_YY)

    @property
    def n(self) -> int:
        """Number of patients."""
        return int(self.confusion_YY.sum())

    @property
    def reliability_R3(self) -> FloatArray:
        """By confidence bin: patients, sum of confidence, correctly predicted patients; float64."""
        return np.asarray(self.reliability_fixed_R3 / np.array([1, FIXED_POINT_SCALE, 1]))

    @property
    def squared_error(self) -> float:
        """Sum over patients of (p_1 - y)^2 for two classes, else of the squared errors of all classes."""
        return int(self.losses_fixed_2[0]) / FIXED_POINT_SCALE

    @property
    def log_loss(self) -> float:
        """Sum over patients of -log p of the true class (p at least ``PROBABILITY_FLOOR``), in nats."""
        return int(self.losses_fixed_2[1]) / FIXED_POINT_SCALE

    def to_arrays(self) -> dict[str, npt.NDArray[np.int64]]:
        """The counts by name, all int64: the form in which they travel and are summed."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.int64]], classes: int | None = None) -> Scores:
        """The inverse of ``to_arrays``, for arrays that somebody else sent.

        ``classes`` is the number of classes to insist on. Raises MessageError with every array that is missing,
        unknown or of another type or shape, or else everything in which the counts contradict one another.
        """
        problems = list(_problems_of_form(arrays, classes))
        if problems:
            raise MessageError("scores: " + "; ".join(problems))
        scores = cls(**{name: np.array(array) for name, array in arrays.items()})
        problems = list(_problems_of_range(scores)) or list(_problems_of_consistency(scores))
        if problems:
            raise MessageError("scores: " + "; ".join(problems))
        return scores


def _sigmoid(logits: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def _shapes(classes: int) -> dict[str, tuple[int, ...]]:
    if classes < 2:
        raise ValueError("scores need at least two classes")
    return {
        "confusion_YY": (classes, classes),
        "histogram_Y2G": (classes, 2, PROBABILITY_BINS),
        "reliability_fixed_R3": (RELIABILITY_BINS, 3),
        "losses_fixed_2": (2,),
    }


def _checked_probabilities(probabilities_BY: npt.NDArray[np.floating]) -> FloatArray:
    p_BY = np.ascontiguousarray(probabilities_BY, dtype=np.float64)
    if p_BY.ndim != 2 or p_BY.shape[1] < 2:
        raise ValueError("probabilities must have the shape (patients, classes), with two classes or more")
    if not (np.isfinite(p_BY).all() and (p_BY >= 0).all()):
        raise ValueError("probabilities must be finite and not negative")
    if (np.abs(p_BY.sum(axis=1) - 1) > SUM_TOLERANCE).any():
        raise ValueError("the probabilities of a patient must sum to one")
    return np.minimum(p_BY, 1.0)


def _checked_labels(labels_B: npt.NDArray[np.integer], patients: int, classes: int) -> IntArray:
    labels_B = np.asarray(labels_B)
    if labels_B.shape != (patients,) or labels_B.dtype.kind not in "iu":
        raise ValueError("labels must be one integer for each patient")
    if ((labels_B < 0) | (labels_B >= classes)).any():
        raise ValueError("labels must be class indices; patients without a known label have no score")
    return labels_B.astype(np.int64)


def _fixed(values: FloatArray) -> IntArray:
    return np.rint(values * FIXED_POINT_SCALE).astype(np.int64)


def _count(indices: tuple[npt.NDArray[np.generic], ...], shape: tuple[int, ...]) -> IntArray:
    """How often each cell of an array of the given shape is named by the indices."""
    flat = np.ravel_multi_index(tuple(index.astype(np.intp).ravel() for index in indices), shape)
    return np.bincount(flat, minlength=math.prod(shape)).astype(np.int64).reshape(shape)


def _reliability(confidence_B: FloatArray, correct_B: npt.NDArray[np.bool_]) -> IntArray:
    bins_B = np.minimum((confidence_B * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    reliability_R3 = np.zeros((RELIABILITY_BINS, 3), np.int64)
    terms_B3 = np.stack([np.ones_like(bins_B), _fixed(confidence_B), correct_B.astype(np.int64)], axis=1)
    np.add.at(reliability_R3, bins_B, terms_B3)
    return reliability_R3


def _problems_of_form(arrays: Mapping[str, npt.NDArray[np.int64]], classes: int | None) -> Iterator[str]:
    """Names, types and shapes."""
    confusion = arrays.get("confusion_YY")
    if classes is None:
        has_classes = isinstance(confusion, np.ndarray) and confusion.ndim == 2 and len(confusion) >= 2
        classes = len(confusion) if confusion is not None and has_classes else 2
    shapes = _shapes(classes)
    unknown = sum(name not in shapes for name in arrays)
    if unknown:
        yield f"{unknown} arrays that scores do not have"
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None:
            yield f"{name} is missing"
        elif not isinstance(array, np.ndarray) or array.dtype != np.int64:
            yield f"{name} must be an int64 array"
        elif array.shape != shape:
            yield f"{name} has the shape {array.shape}, not {shape}"


def _problems_of_range(scores: Scores) -> Iterator[str]:
    """Numbers that no patients can give; one by one, so that the sums of the next check cannot overflow."""
    largest_loss = -math.log(PROBABILITY_FLOOR) * FIXED_POINT_SCALE * MAXIMUM_PATIENTS
    largest: dict[str, int | IntArray] = {
        "confusion_YY": MAXIMUM_PATIENTS,
        "histogram_Y2G": MAXIMUM_PATIENTS,
        "reliability_fixed_R3": MAXIMUM_PATIENTS * np.array([1, FIXED_POINT_SCALE, 1]),
        "losses_fixed_2": int(largest_loss),
    }
    for name, array in scores.to_arrays().items():
        if (array < 0).any():
            yield f"{name} is negative"
        elif (array > largest[name]).any():
            yield f"{name} is larger than {MAXIMUM_PATIENTS} patients can make it"


def _problems_of_consistency(scores: Scores) -> Iterator[str]:
    """Counts that cannot come from the same patients."""
    n = scores.n
    half = PROBABILITY_BINS // 2
    of_class_Y = scores.confusion_YY.sum(axis=1)
    in_histogram_Y2 = scores.histogram_Y2G.sum(axis=2)
    if n > MAXIMUM_PATIENTS:
        yield f"more than {MAXIMUM_PATIENTS} patients"
    if not np.array_equal(in_histogram_Y2, np.stack([n - of_class_Y, of_class_Y], axis=1)):
        yield "histogram_Y2G and confusion_YY count different patients"
    elif scores.classes == 2 and not np.array_equal(
        scores.histogram_Y2G[1, :, half:].sum(axis=1), scores.confusion_YY[:, 1]
    ):
        yield "histogram_Y2G and confusion_YY disagree on who is predicted positive"
    yield from _problems_of_reliability(scores)
    largest_losses_2 = n * np.array([1 if scores.classes == 2 else 2, -math.log(PROBABILITY_FLOOR)])
    if (scores.losses_fixed_2 > largest_losses_2 * (1 + 2 * SUM_TOLERANCE) * FIXED_POINT_SCALE).any():
        yield f"losses_fixed_2 is larger than {n} patients can make it"


def _problems_of_reliability(scores: Scores) -> Iterator[str]:
    count_R, confidence_R, correct_R = scores.reliability_fixed_R3.T
    width = FIXED_POINT_SCALE / RELIABILITY_BINS
    bins_R = np.arange(RELIABILITY_BINS)
    if count_R.sum() != scores.n or correct_R.sum() != np.trace(scores.confusion_YY):
        yield "reliability_fixed_R3 and confusion_YY count different patients"
    if (correct_R > count_R).any():
        yield "reliability_fixed_R3 has more correct patients than patients"
    too_low_R = confidence_R < count_R * (bins_R * width - 1)
    too_high_R = confidence_R > count_R * ((bins_R + 1) * width + 1)
    if (too_low_R | too_high_R).any():
        yield "reliability_fixed_R3 has a confidence outside its bin"
