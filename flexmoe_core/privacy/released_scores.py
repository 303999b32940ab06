"""The metrics that leave under patient-level privacy: counts in ten bins, released once, with noise.

Each patient counts in a few cells, so that the L2 sensitivity of all counts together is known; they are scaled to
sensitivity one before noise is added. What is derived from noised counts costs nothing more.

Shapes: B patients, Y classes, H histograms (one for two classes), G bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from flexmoe_core.errors import MessageError
from flexmoe_core.privacy.secret_source import SecretSource, noised
from flexmoe_core.score_metrics import MINIMUM_CLASS_COUNT, auroc_of_counts
from flexmoe_core.scores import predicted_classes

BINS = 10


@dataclass(frozen=True)
class ReleasedScores:
    """Noised counts, float64: ``histogram_H2G`` as in ``Scores`` with ten even bins, ``correct_2`` wrong and right.

    ``deviation`` is the standard deviation of the noise of each count. Sums over sites add up.
    """

    histogram_H2G: np.ndarray
    correct_2: np.ndarray
    deviation: float

    @property
    def n(self) -> float:
        """About how many patients: a noised number."""
        return float(self.correct_2.sum())

    @property
    def accuracy(self) -> float | None:
        """Within [0, 1]; None where the noise may be as large as the number of patients."""
        if self.n < 2 * self.deviation * 2**0.5:
            return None
        return float(np.clip(self.correct_2[1] / self.n, 0.0, 1.0))

    @property
    def auroc(self) -> float | None:
        """Of class 1, or the mean of several; None where a class has hardly more patients than noise."""
        least = max(MINIMUM_CLASS_COUNT, 2 * self.deviation * BINS**0.5)
        if (self.histogram_H2G.sum(axis=-1) < least).any():
            return None
        # Noised counts below zero stay: to cut them off would pull every estimate towards one half.
        return float(np.clip(np.mean(auroc_of_counts(self.histogram_H2G)), 0.0, 1.0))

    def __add__(self, other: ReleasedScores) -> ReleasedScores:
        return ReleasedScores(
            self.histogram_H2G + other.histogram_H2G,
            self.correct_2 + other.correct_2,
            math.hypot(self.deviation, other.deviation),
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For a message."""
        return {"histogram": self.histogram_H2G, "correct": self.correct_2, "deviation": np.array([self.deviation])}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], classes: int) -> ReleasedScores:
        """The inverse of ``to_arrays`` for arrays that somebody else sent; raises MessageError."""
        shapes = {"histogram": (histograms(classes), 2, BINS), "correct": (2,), "deviation": (1,)}
        if {name: value.shape for name, value in arrays.items()} != shapes:
            raise MessageError("released scores have other parts or shapes than those asked for")
        if not all(value.dtype == np.float64 and np.isfinite(value).all() for value in arrays.values()):
            raise MessageError("released scores are not finite")
        if arrays["deviation"][0] < 0:
            raise MessageError("released scores have a negative deviation")
        return cls(arrays["histogram"], arrays["correct"], float(arrays["deviation"][0]))


def histograms(classes: int) -> int:
    """One class against the rest each; of two classes the second says all."""
    return 1 if classes == 2 else classes


def sensitivity(classes: int) -> float:
    """The L2 norm of what one patient adds: one cell of each histogram, and one of right and wrong."""
    return math.sqrt(histograms(classes) + 1)


def count_scores(probabilities_BY: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
    """Exact counts, flat: the histograms, then wrong and right. One patient adds ``sensitivity`` in L2 norm."""
    classes = probabilities_BY.shape[1]
    chosen_H = [1] if classes == 2 else list(range(classes))
    edges = np.arange(1, BINS) / BINS
    histogram_H2G = np.zeros((len(chosen_H), 2, BINS))
    for place, k in enumerate(chosen_H):
        bins_B = np.searchsorted(edges, probabilities_BY[:, k], side="right")
        np.add.at(histogram_H2G[place], ((labels_B == k).astype(int), bins_B), 1.0)
    correct_2 = np.bincount((predicted_classes(probabilities_BY) == labels_B).astype(int), minlength=2)
    return np.concatenate([histogram_H2G.ravel(), correct_2.astype(np.float64)])


def release_scores(
    probabilities_BY: np.ndarray, labels_B: np.ndarray, noise_multiplier: float, source: SecretSource
) -> ReleasedScores:
    """The noised counts of some patients, B = 0 included."""
    classes = probabilities_BY.shape[1]
    deviation = noise_multiplier * sensitivity(classes)
    counts = torch.from_numpy(count_scores(probabilities_BY, labels_B))
    noisy = noised(source, counts, deviation).numpy()
    return ReleasedScores(noisy[:-2].reshape(histograms(classes), 2, BINS), noisy[-2:].copy(), deviation)
