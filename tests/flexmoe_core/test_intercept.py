"""A site's own intercept: the most probable one, and what it leaves alone.

Shapes: B patients, Y classes.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.intercept import fit_intercept, shift
from tests.flexmoe_core.predictions import random_predictions

CLASSES = st.integers(2, 5)
SPREADS = st.floats(0.01, 20)


def penalized(probabilities_BY: np.ndarray, labels_B: np.ndarray, spread: float, intercept_Y: np.ndarray) -> float:
    """The negative log of what the intercept maximizes, written out."""
    odds_BY = probabilities_BY * np.exp(intercept_Y)
    chosen_B = odds_BY[np.arange(len(labels_B)), labels_B] / odds_BY.sum(axis=1)
    return float(-np.log(chosen_B).sum() + (intercept_Y**2).sum() / (2 * spread**2))


def random_site(seed: int, classes: int, patients: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and labels of a site whose prevalence is another than the model believes."""
    generator = np.random.default_rng(seed)
    probabilities_BY, labels_B = random_predictions(generator, patients, classes)
    return probabilities_BY, np.where(generator.random(patients) < 0.4, 0, labels_B)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), CLASSES, SPREADS)
def test_the_penalized_likelihood_is_flat_at_the_intercept_and_falls_around_it(
    seed: int, classes: int, spread: float
) -> None:
    probabilities_BY, labels_B = random_site(seed, classes)
    found_Y = fit_intercept(probabilities_BY, labels_B, spread)
    least = penalized(probabilities_BY, labels_B, spread, found_Y)
    step = 1e-3 * min(1.0, spread)
    for direction_Y in np.eye(classes):
        up, down = (
            penalized(probabilities_BY, labels_B, spread, found_Y + sign * step * direction_Y) for sign in (1, -1)
        )
        assert min(up, down) > least
        assert (up - down) / (2 * step) == pytest.approx(0, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), CLASSES, SPREADS)
def test_it_sums_to_zero(seed: int, classes: int, spread: float) -> None:
    found_Y = fit_intercept(*random_site(seed, classes), spread)
    assert found_Y.shape == (classes,)
    assert found_Y.any()
    assert found_Y.sum() == pytest.approx(0, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)), SPREADS)
def test_the_order_of_classes_does_not_matter(seed: int, order: list[int], spread: float) -> None:
    probabilities_BY, labels_B = random_site(seed, classes=4)
    expected_Y = fit_intercept(probabilities_BY, labels_B, spread)[order]
    found_Y = fit_intercept(probabilities_BY[:, order], np.argsort(order)[labels_B], spread)
    np.testing.assert_allclose(found_Y, expected_Y, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), SPREADS)
def test_of_two_classes_no_ranking_changes(seed: int, spread: float) -> None:
    probabilities_BY, labels_B = random_site(seed, classes=2)
    shifted_BY = shift(probabilities_BY, fit_intercept(probabilities_BY, labels_B, spread))
    assert not np.allclose(shifted_BY, probabilities_BY, atol=1e-6)
    assert (np.argsort(shifted_BY[:, 1]) == np.argsort(probabilities_BY[:, 1])).all()


def test_without_penalty_the_mean_prediction_is_the_prevalence() -> None:
    probabilities_BY, labels_B = random_site(1, classes=3, patients=500)
    shifted_BY = shift(probabilities_BY, fit_intercept(probabilities_BY, labels_B, spread=100))
    shares_Y = np.bincount(labels_B, minlength=3) / len(labels_B)
    assert np.abs(probabilities_BY.mean(axis=0) - shares_Y).max() > 0.1
    np.testing.assert_allclose(shifted_BY.mean(axis=0), shares_Y, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_without_spread_or_patients_there_is_none(classes: int) -> None:
    probabilities_BY, labels_B = random_site(2, classes)
    assert fit_intercept(probabilities_BY, labels_B, spread=0).tolist() == [0] * classes
    assert fit_intercept(probabilities_BY[:0], labels_B[:0], spread=1).tolist() == [0] * classes


@pytest.mark.parametrize("spread", [0.1, 1, 100])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_site_of_one_class_has_a_finite_one(classes: int, spread: float) -> None:
    probabilities_BY, labels_B = random_site(3, classes)
    found_Y = fit_intercept(probabilities_BY, np.full_like(labels_B, classes - 1), spread)
    assert np.isfinite(found_Y).all()
    assert found_Y[-1] > 0 > found_Y[:-1].max()


@pytest.mark.parametrize("wrong", [0.0, 1e-300])
def test_a_model_that_is_surely_wrong_leaves_it_finite(wrong: float) -> None:
    probabilities_BY = np.tile([1.0 - wrong, wrong], (20, 1))
    found_Y = fit_intercept(probabilities_BY, np.ones(20, dtype=np.int64), spread=1)
    np.testing.assert_allclose(found_Y, [-20, 20])  # as far as twenty patients pull against the prior
    assert np.isfinite(shift(probabilities_BY, found_Y)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), CLASSES, SPREADS, st.floats(1.1, 5))
def test_a_larger_spread_moves_it_further(seed: int, classes: int, spread: float, factor: float) -> None:
    probabilities_BY, labels_B = random_site(seed, classes)
    near_Y, far_Y = (fit_intercept(probabilities_BY, labels_B, one) for one in (spread, factor * spread))
    assert np.linalg.norm(near_Y) < np.linalg.norm(far_Y)


def test_more_patients_of_the_same_kind_move_it_further() -> None:
    probabilities_BY, labels_B = random_site(4, classes=3)
    once_Y = fit_intercept(probabilities_BY, labels_B, spread=0.5)
    often_Y = fit_intercept(np.tile(probabilities_BY, (10, 1)), np.tile(labels_B, 10), spread=0.5)
    assert np.linalg.norm(once_Y) < np.linalg.norm(often_Y)


def test_zero_changes_nothing() -> None:
    probabilities_BY, _ = random_site(5, classes=3)
    np.testing.assert_allclose(shift(probabilities_BY, np.zeros(3)), probabilities_BY, rtol=1e-14)
    assert shift(probabilities_BY[:0], np.ones(3)).shape == (0, 3)


def test_shifting_adds_to_the_logits() -> None:
    probabilities_BY, _ = random_site(6, classes=3)
    first_Y, second_Y = np.array([0.3, -1.0, 0.7]), np.array([-2.0, 0.5, 1.5])
    shifted_BY = shift(probabilities_BY, first_Y)
    np.testing.assert_allclose(shifted_BY.sum(axis=1), 1)
    odds_B = shifted_BY[:, 1] / shifted_BY[:, 0] / (probabilities_BY[:, 1] / probabilities_BY[:, 0])
    np.testing.assert_allclose(odds_B, np.exp(-1.3))
    np.testing.assert_allclose(shift(shifted_BY, second_Y), shift(probabilities_BY, first_Y + second_Y))
