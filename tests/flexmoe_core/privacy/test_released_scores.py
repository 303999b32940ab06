"""Released metrics: counts whose sensitivity is known, and what noise leaves of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.errors import MessageError
from flexmoe_core.privacy.released_scores import BINS, ReleasedScores, histograms, release_scores, sensitivity
from flexmoe_core.privacy.secret_source import OperatingSystemSource
from flexmoe_core.score_metrics import auroc
from flexmoe_core.scores import Scores
from tests.flexmoe_core.privacy.sources import KnownSource

SILENT = 1e-9
"""A noise multiplier that leaves counts as they are."""


def patients(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.ones(classes), count), generator.integers(0, classes, count)


def flat(scores: ReleasedScores) -> np.ndarray:
    return np.concatenate([scores.histogram_H2G.ravel(), scores.correct_2])


@given(count=st.integers(1, 30), classes=st.integers(2, 5), seed=st.integers(0, 1000))
def test_one_patient_moves_the_counts_by_the_sensitivity(count: int, classes: int, seed: int) -> None:
    probabilities_BY, labels_B = patients(count, classes, seed)
    everybody = flat(release_scores(probabilities_BY, labels_B, SILENT, KnownSource()))
    without = flat(release_scores(probabilities_BY[1:], labels_B[1:], SILENT, KnownSource()))
    assert np.linalg.norm(everybody - without) == pytest.approx(sensitivity(classes), rel=1e-6)


def test_counts_without_noise_give_the_metrics() -> None:
    labels_B = np.arange(400) % 2
    scores_B = np.clip(np.random.default_rng(0).normal(0.4 + 0.2 * labels_B, 0.2), 0.01, 0.99)
    probabilities_BY = np.stack([1 - scores_B, scores_B], axis=1)
    released = release_scores(probabilities_BY, labels_B, SILENT, OperatingSystemSource())
    exact = Scores.of(probabilities_BY, labels_B)
    found = auroc(exact)
    assert found is not None
    assert released.n == pytest.approx(400)
    assert released.accuracy == pytest.approx(((scores_B >= 0.5) == labels_B).mean())
    assert released.auroc == pytest.approx(found, abs=0.02)


def test_noise_has_the_declared_deviation_and_adds_up() -> None:
    empty = np.zeros((0, 3)), np.zeros(0, np.int64)
    drawn = [release_scores(*empty, 4.0, OperatingSystemSource()) for _ in range(300)]
    assert np.std([flat(one) for one in drawn]) == pytest.approx(drawn[0].deviation, rel=0.05)
    assert drawn[0].deviation == pytest.approx(4.0 * sensitivity(3))
    assert (drawn[0] + drawn[1]).deviation == pytest.approx(drawn[0].deviation * 2**0.5)


def test_metrics_that_are_mostly_noise_are_not_given() -> None:
    probabilities_BY, labels_B = patients(8, 2, 0)
    released = release_scores(probabilities_BY, labels_B, 4.0, OperatingSystemSource())
    assert released.auroc is None
    assert release_scores(probabilities_BY, labels_B, 40.0, KnownSource()).accuracy is None


def test_released_scores_travel() -> None:
    sent = release_scores(*patients(20, 3, 1), 1.0, OperatingSystemSource())
    received = ReleasedScores.from_arrays(sent.to_arrays(), 3)
    assert (flat(received) == flat(sent)).all()
    assert received.deviation == sent.deviation


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"histogram": np.zeros((2, 2, BINS))},
        {"correct": np.array([np.nan, 1.0])},
        {"correct": np.zeros(2, np.float32)},
        {"deviation": np.array([-1.0])},
        {"more": np.zeros(1)},
    ],
)
def test_other_arrays_are_refused(broken: dict[str, np.ndarray]) -> None:
    whole = release_scores(*patients(20, 2, 1), 1.0, OperatingSystemSource()).to_arrays()
    arrays = whole | broken if broken else {}
    with pytest.raises(MessageError, match="released scores"):
        ReleasedScores.from_arrays(arrays, 2)


def test_two_classes_need_one_histogram() -> None:
    assert (histograms(2), histograms(3)) == (1, 3)
