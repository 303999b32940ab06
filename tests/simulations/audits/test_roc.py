from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from simulations.audits.roc import roc_of, separation


def two_normals(members: int, others: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    scores = np.concatenate([generator.normal(shift, 1, members), generator.normal(0, 1, others)])
    return scores, np.arange(members + others) < members


def test_a_curve_by_hand() -> None:
    curve = roc_of(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert curve.false_positive_K.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert curve.true_positive_K.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert curve.auc == pytest.approx(0.875)


def test_the_area_is_that_of_scikit_learn_ties_included() -> None:
    scores, is_member = two_normals(200, 300, 0.7)
    rounded = np.round(scores, 1)
    assert roc_of(rounded, is_member).auc == pytest.approx(roc_auc_score(is_member, rounded), abs=1e-12)


def test_a_rate_of_two_normals_is_the_known_one() -> None:
    curve = roc_of(*two_normals(100_000, 100_000, 1.0))
    assert curve.auc == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.005)
    assert curve.true_positive_rate(0.01) == pytest.approx(norm.sf(norm.isf(0.01) - 1), abs=0.01)


def test_a_rate_of_fewer_than_ten_non_members_is_not_available() -> None:
    curve = roc_of(*two_normals(50, 1000, 1.0))
    assert curve.true_positive_rate(0.01) is not None
    assert curve.true_positive_rate(0.0099) is None
    assert roc_of(*two_normals(50, 999, 1.0)).true_positive_rate(0.01) is None


def test_no_threshold_is_looser_than_the_rate() -> None:
    curve = roc_of(np.array([5.0, 4.0, 4.0, 1.0] + [0.0] * 96), np.array([True, True, False, True] + [False] * 96))
    assert curve.true_positive_rate(0.2) == 1.0
    tied = roc_of(np.concatenate([np.ones(100), [0.5]]), np.array([False] * 50 + [True] * 51))
    assert tied.true_positive_rate(0.3) == 0.0


@pytest.mark.parametrize("is_member", [[True, True], [False, False]])
def test_one_side_alone_has_no_curve(is_member: list[bool]) -> None:
    scores, sides = np.array([1.0, 2.0]), np.array(is_member)
    with pytest.raises(ValueError, match="members, non-members"):
        roc_of(scores, sides)
    assert separation(scores, sides, np.arange(2), [0.1], np.random.default_rng(0)) is None


def test_intervals_cover_the_true_area_as_often_as_they_say() -> None:
    true, covered = norm.cdf(0.8 / np.sqrt(2)), 0
    for seed in range(60):
        scores, is_member = two_normals(60, 80, 0.8, seed)
        found = separation(scores, is_member, np.arange(140), [], np.random.default_rng(seed), 200)
        assert found is not None and found.auc.low is not None and found.auc.high is not None
        covered += found.auc.low <= true <= found.auc.high
    assert 52 <= covered <= 60


def test_scores_of_the_same_patients_are_no_new_patients() -> None:
    scores, is_member = two_normals(100, 100, 1.0)
    once = separation(scores, is_member, np.arange(200), [0.1], np.random.default_rng(0), 300)
    again = separation(
        np.tile(scores, 9), np.tile(is_member, 9), np.tile(np.arange(200), 9), [0.1], np.random.default_rng(0), 300
    )
    assert once is not None and again is not None
    assert again.auc == once.auc
    assert again.at_rate[0].low == pytest.approx(once.at_rate[0].low)
    assert (again.members, once.members) == (900, 100)
