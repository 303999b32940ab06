"""What a site adds to the shared model: the most probable effect, and what it leaves alone.

Shapes: B patients, M modalities, F features, X columns of a regression, Y classes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flexmoe_core.cohort import Cohort
from flexmoe_core.settings import SiteSettings
from flexmoe_core.site_effect import SiteEffect, site_columns
from flexmoe_core.site_fit import best_share, fit_effect, fit_intercept, fit_regression, fit_share, spread_weights
from tests.flexmoe_core.predictions import random_predictions

MODALITIES = ("labs", "imaging")
CLASSES = st.integers(2, 5)
SPREADS = st.floats(0.01, 20)


def random_site(seed: int, classes: int, patients: int = 30) -> tuple[np.ndarray, Cohort]:
    """Predictions of a shared model, and the patients of a site whose prevalence is another than it believes."""
    generator = np.random.default_rng(seed)
    probabilities_BY, labels_B = random_predictions(generator, patients, classes)
    labels_B = np.where(generator.random(patients) < 0.4, 0, labels_B)
    observed_BM = torch.from_numpy(generator.random((patients, len(MODALITIES))) < 0.7)
    inputs = {
        name: torch.from_numpy(generator.normal(size=(patients, width))).float() * observed_BM[:, m, None]
        for m, (name, width) in enumerate(zip(MODALITIES, (3, 2), strict=True))
    }
    return probabilities_BY, Cohort(inputs, observed_BM, torch.from_numpy(labels_B))


def with_labels(cohort: Cohort, labels_B: np.ndarray) -> Cohort:
    return Cohort(cohort.inputs, cohort.observed_BM, torch.from_numpy(labels_B.astype(np.int64)))


def intercept_of(probabilities_BY: np.ndarray, cohort: Cohort, spread: float) -> np.ndarray:
    return fit_intercept(MODALITIES, probabilities_BY, cohort, SiteSettings(intercept=spread)).intercept_Y


def mean_loss(logits_BY: np.ndarray, labels_B: np.ndarray) -> float:
    """Log-loss in nats."""
    return float(np.mean(np.logaddexp.reduce(logits_BY, axis=1) - logits_BY[np.arange(len(labels_B)), labels_B]))


def penalized(probabilities_BY: np.ndarray, cohort: Cohort, spread: float, intercept_Y: np.ndarray) -> float:
    """The negative log of what the intercept maximizes, written out."""
    odds_BY = probabilities_BY * np.exp(intercept_Y)
    chosen_B = odds_BY[np.arange(len(cohort)), cohort.labels_B.numpy()] / odds_BY.sum(axis=1)
    return float(-np.log(chosen_B).sum() + (intercept_Y**2).sum() / (2 * spread**2))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), CLASSES, SPREADS)
@example(seed=534, classes=2, spread=0.01)  # where the loss hardly changes any more long before it is flat
def test_the_penalized_likelihood_is_flat_at_the_intercept_and_falls_around_it(
    seed: int, classes: int, spread: float
) -> None:
    site = random_site(seed, classes)
    found_Y = intercept_of(*site, spread)
    least = penalized(*site, spread, found_Y)
    step = 1e-3 * min(1.0, spread)
    for direction_Y in np.eye(classes):
        up, down = (penalized(*site, spread, found_Y + sign * step * direction_Y) for sign in (1, -1))
        assert min(up, down) > least
        assert (up - down) / (2 * step) == pytest.approx(0, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), CLASSES, SPREADS)
def test_effects_sum_to_zero_over_the_classes(seed: int, classes: int, spread: float) -> None:
    shared_BY, cohort = random_site(seed, classes)
    found_Y = intercept_of(shared_BY, cohort, spread)
    assert found_Y.shape == (classes,)
    assert found_Y.any()
    regression = fit_regression(MODALITIES, cohort, classes, spread, SiteSettings())
    for array in (found_Y, regression.intercept_Y, regression.lacking_MY, *regression.slopes_FY.values()):
        np.testing.assert_allclose(array.sum(axis=-1), 0, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)), SPREADS)
def test_the_order_of_classes_does_not_matter(seed: int, order: list[int], spread: float) -> None:
    shared_BY, cohort = random_site(seed, classes=4)
    other = with_labels(cohort, np.argsort(order)[cohort.labels_B.numpy()])
    expected_Y = intercept_of(shared_BY, cohort, spread)[order]
    np.testing.assert_allclose(intercept_of(shared_BY[:, order], other, spread), expected_Y, atol=1e-7)
    first, second = (fit_regression(MODALITIES, one, 4, spread, SiteSettings()) for one in (cohort, other))
    np.testing.assert_allclose(second.slopes_FY["labs"], first.slopes_FY["labs"][:, order], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), SPREADS)
def test_of_two_classes_the_intercept_changes_no_ranking(seed: int, spread: float) -> None:
    shared_BY, cohort = random_site(seed, classes=2)
    effect = fit_intercept(MODALITIES, shared_BY, cohort, SiteSettings(intercept=spread))
    joined_BY = effect.probabilities(shared_BY, cohort)
    assert not np.allclose(joined_BY, shared_BY, atol=1e-6)
    assert (np.argsort(joined_BY[:, 1]) == np.argsort(shared_BY[:, 1])).all()


def test_without_penalty_the_mean_prediction_is_the_prevalence() -> None:
    shared_BY, cohort = random_site(1, classes=3, patients=500)
    effect = fit_intercept(MODALITIES, shared_BY, cohort, SiteSettings(intercept=100))
    shares_Y = np.bincount(cohort.labels_B, minlength=3) / len(cohort)
    assert np.abs(shared_BY.mean(axis=0) - shares_Y).max() > 0.1
    np.testing.assert_allclose(effect.probabilities(shared_BY, cohort).mean(axis=0), shares_Y, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_without_spread_or_patients_there_is_no_intercept(classes: int) -> None:
    shared_BY, cohort = random_site(2, classes)
    nobody = cohort.select(torch.arange(0))
    assert intercept_of(shared_BY, cohort, spread=0).tolist() == [0] * classes
    assert intercept_of(shared_BY[:0], nobody, spread=1).tolist() == [0] * classes


@pytest.mark.parametrize("spread", [0.1, 1, 100])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_site_of_one_class_has_a_finite_effect(classes: int, spread: float) -> None:
    shared_BY, cohort = random_site(3, classes)
    cohort = with_labels(cohort, np.full(len(cohort), classes - 1))
    found_Y = intercept_of(shared_BY, cohort, spread)
    assert np.isfinite(found_Y).all()
    assert found_Y[-1] > 0 > found_Y[:-1].max()
    regression = fit_regression(MODALITIES, cohort, classes, spread, SiteSettings(intercept=spread))
    assert np.isfinite(regression.logits(shared_BY, cohort)).all()


@pytest.mark.parametrize("wrong", [0.0, 1e-300])
def test_a_model_that_is_surely_wrong_leaves_it_finite(wrong: float) -> None:
    shared_BY = np.tile([1.0 - wrong, wrong], (20, 1))
    cohort = with_labels(random_site(0, 2, patients=20)[1], np.ones(20))
    effect = fit_intercept(MODALITIES, shared_BY, cohort, SiteSettings(intercept=1))
    np.testing.assert_allclose(effect.intercept_Y, [-20, 20])  # as far as twenty patients pull against the prior
    assert np.isfinite(effect.probabilities(shared_BY, cohort)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), CLASSES, SPREADS, st.floats(1.1, 5))
def test_a_larger_spread_moves_the_intercept_further(seed: int, classes: int, spread: float, factor: float) -> None:
    site = random_site(seed, classes)
    near_Y, far_Y = (intercept_of(*site, one) for one in (spread, factor * spread))
    assert np.linalg.norm(near_Y) < np.linalg.norm(far_Y)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), CLASSES, st.floats(0.05, 5))
def test_the_posterior_is_flat_at_the_regression(seed: int, classes: int, spread: float) -> None:
    """Written out on standardized columns, with the gradient by hand."""
    shared_BY, cohort = random_site(seed, classes)
    effect = fit_regression(MODALITIES, cohort, classes, spread, SiteSettings(intercept=2.0))
    x_BX = np.hstack([~cohort.observed_BM.numpy(), *(cohort.inputs[name].double().numpy() for name in MODALITIES)])
    deviation_X = x_BX.std(axis=0)
    z_BX = (x_BX - x_BX.mean(axis=0)) / deviation_X
    slopes_XY = np.vstack([effect.lacking_MY, *(effect.slopes_FY[name] for name in MODALITIES)])
    intercept_Y = effect.intercept_Y + x_BX.mean(axis=0) @ slopes_XY
    logits_BY = z_BX @ (slopes_XY * deviation_X[:, None]) + intercept_Y
    np.testing.assert_allclose(effect.logits(shared_BY, cohort), logits_BY, atol=1e-9)
    surplus_BY = np.exp(logits_BY - np.logaddexp.reduce(logits_BY, axis=1, keepdims=True))
    surplus_BY[np.arange(len(cohort)), cohort.labels_B.numpy()] -= 1
    decay_XY = slopes_XY * deviation_X[:, None] * x_BX.shape[1] / spread**2
    step = spread / x_BX.shape[1] ** 0.5  # one spread of the prior
    np.testing.assert_allclose((z_BX.T @ surplus_BY + decay_XY) * step, 0, atol=1e-4)
    np.testing.assert_allclose(surplus_BY.sum(axis=0) + intercept_Y / 2.0**2, 0, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), CLASSES, SPREADS, st.integers(1, 6))
def test_more_columns_than_patients_have_a_flat_posterior_too(
    seed: int, classes: int, spread: float, patients: int
) -> None:
    _, cohort = random_site(seed, classes, patients)
    x_BX = site_columns(cohort, MODALITIES)
    assert x_BX.shape[1] > patients
    found = fit_regression(MODALITIES, cohort, classes, spread, SiteSettings())
    share_BY = torch.from_numpy(found.logits(np.ones((patients, classes)), cohort)).softmax(dim=1)
    residual_BY = share_BY - torch.eye(classes, dtype=torch.float64)[cohort.labels_B]
    slopes_XY = torch.from_numpy(np.concatenate([found.lacking_MY, *found.slopes_FY.values()]))
    deviation_X = x_BX.std(dim=0, correction=0)
    varying_X = deviation_X > 1e-9
    variance_X = spread**2 / max(1, int(varying_X.sum())) / deviation_X[varying_X] ** 2
    gradient_XY = (x_BX - x_BX.mean(dim=0)).T[varying_X] @ residual_BY
    torch.testing.assert_close(gradient_XY, -slopes_XY[varying_X] / variance_X[:, None], rtol=1e-6, atol=1e-6)


def test_the_regression_finds_what_a_finding_means_here() -> None:
    shared_BY, cohort = random_site(8, classes=2, patients=2000)
    cohort = with_labels(cohort, (cohort.inputs["labs"][:, 1] > 0).numpy())
    effect = fit_regression(MODALITIES, cohort, 2, 5.0, SiteSettings())
    steepest = max(MODALITIES, key=lambda name: float(np.abs(effect.slopes_FY[name]).max()))
    assert steepest == "labs"
    assert np.abs(effect.slopes_FY["labs"])[:, 1].argmax() == 1
    predicted_B = effect.probabilities(shared_BY, cohort).argmax(axis=1)[cohort.observed_BM[:, 0].numpy()]
    assert (predicted_B == cohort.labels_B[cohort.observed_BM[:, 0]].numpy()).mean() > 0.95


def test_values_of_a_missing_modality_are_never_read() -> None:
    shared_BY, cohort = random_site(9, classes=3)
    poisoned = Cohort(
        {
            name: x_BF.masked_fill(~cohort.observed_BM[:, m, None], math.nan)
            for m, (name, x_BF) in enumerate(cohort.inputs.items())
        },
        cohort.observed_BM,
        cohort.labels_B,
    )
    clean, same = (fit_regression(MODALITIES, one, 3, 1.0, SiteSettings()) for one in (cohort, poisoned))
    for name, array in clean.to_arrays().items():
        np.testing.assert_array_equal(same.to_arrays()[name], array)
    np.testing.assert_array_equal(same.logits(shared_BY, poisoned), clean.logits(shared_BY, cohort))


def test_the_order_of_inputs_changes_no_bit() -> None:
    shared_BY, cohort = random_site(14, classes=3)
    turned = Cohort(dict(reversed(list(cohort.inputs.items()))), cohort.observed_BM, cohort.labels_B)
    first, second = (fit_effect(MODALITIES, shared_BY, one, 0.4, SiteSettings()) for one in (cohort, turned))
    for name, array in first.to_arrays().items():
        np.testing.assert_array_equal(second.to_arrays()[name], array)


def test_columns_that_say_nothing_have_no_slope() -> None:
    """Constant ones, and inputs that are no rows of numbers: a volume is for its encoder alone."""
    _, cohort = random_site(10, classes=2)
    everything = torch.ones_like(cohort.observed_BM)
    volumes = torch.randn(len(cohort), 4, 4, 4, generator=torch.Generator().manual_seed(0))
    cohort = Cohort({"labs": torch.ones(len(cohort), 3), "imaging": volumes}, everything, cohort.labels_B)
    effect = fit_regression(MODALITIES, cohort, 2, 1.0, SiteSettings())
    assert list(effect.slopes_FY) == ["labs"]
    assert not effect.slopes_FY["labs"].any()
    assert not effect.lacking_MY.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), CLASSES)
def test_the_share_is_the_most_probable_one(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    first_BY, second_BY = generator.normal(size=(2, 40, classes))
    labels_B = generator.integers(classes, size=40)
    found = best_share(first_BY, second_BY, labels_B)

    def posterior(share: float) -> float:
        loss = mean_loss((1 - share) * first_BY + share * second_BY, labels_B) * len(labels_B)
        return loss + math.log(share / (1 - share)) ** 2 / 2

    assert posterior(found) <= min(posterior(share) for share in np.linspace(0.01, 0.99, 99)) + 0.01


def test_a_share_without_patients_is_one_half_and_a_wrong_regression_gets_little() -> None:
    generator = np.random.default_rng(0)
    labels_B = generator.integers(2, size=600)
    right_BY = np.eye(2)[labels_B] * 4
    assert best_share(right_BY[:0], right_BY[:0], labels_B[:0]) == pytest.approx(0.5)
    assert best_share(right_BY, right_BY[:, ::-1], labels_B) < 0.1
    assert best_share(right_BY[:, ::-1], right_BY, labels_B) > 0.9


def test_the_spread_that_predicts_held_out_patients_best_is_believed() -> None:
    """Labels that follow a value want wide slopes, labels that follow nothing narrow ones."""
    _, cohort = random_site(15, classes=2, patients=200)
    spreads = SiteSettings(regression=(0.01, 5.0))
    clear = with_labels(cohort, (cohort.inputs["labs"][:, 0] > 0).numpy())
    assert spread_weights(MODALITIES, clear, 2, spreads)[1] > 0.99
    chance = with_labels(cohort, np.random.default_rng(0).integers(2, size=200))
    assert spread_weights(MODALITIES, chance, 2, spreads)[0] > 0.99


@pytest.mark.parametrize("patients", [1, 3, 8])
def test_the_smallest_site_has_weights_too(patients: int) -> None:
    _, cohort = random_site(16, classes=3, patients=patients)
    for site in (cohort, with_labels(cohort, np.ones(patients))):
        weights = spread_weights(MODALITIES, site, 3, SiteSettings())
        assert len(weights) == len(SiteSettings().regression)
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)


def mean_regression(cohort: Cohort, chosen: SiteSettings) -> SiteEffect:
    regressions = [fit_regression(MODALITIES, cohort, 2, spread, chosen) for spread in chosen.regression]
    return SiteEffect.mean(regressions, spread_weights(MODALITIES, cohort, 2, chosen))


def test_validation_patients_choose_the_share_of_what_training_patients_teach() -> None:
    shared_BY, cohort = random_site(11, classes=2, patients=90)
    training, validation = cohort.select(torch.arange(60)), cohort.select(torch.arange(60, 90))
    logits_BY = np.log(shared_BY[60:])
    own = mean_regression(training, SiteSettings()).logits(shared_BY[60:], validation)
    share = fit_share(MODALITIES, training, validation, logits_BY, SiteSettings())
    assert share == best_share(logits_BY, own, validation.labels_B.numpy())
    assert 0 < share < 1


def test_the_effect_mixes_what_the_site_learned_with_the_shared_model() -> None:
    shared_BY, cohort = random_site(11, classes=2, patients=90)
    chosen, share = SiteSettings(), 0.4
    effect = fit_effect(MODALITIES, shared_BY, cohort, share, chosen)
    assert effect.kept == pytest.approx(1 - share)
    own = mean_regression(cohort, chosen).logits(shared_BY, cohort)
    others = fit_intercept(MODALITIES, shared_BY, cohort, chosen).logits(shared_BY, cohort)
    np.testing.assert_allclose(effect.logits(shared_BY, cohort), share * own + (1 - share) * others, atol=1e-12)


@pytest.mark.parametrize(("spreads", "patients"), [((), 30), ((1.4,), 0)])
def test_without_spread_or_validation_patients_the_regression_has_no_share(
    spreads: tuple[float, ...], patients: int
) -> None:
    shared_BY, cohort = random_site(12, classes=3, patients=30)
    some = torch.arange(patients)
    chosen = SiteSettings(regression=spreads)
    share = fit_share(MODALITIES, cohort, cohort.select(some), np.log(shared_BY[some]), chosen)
    assert share == 0
    effect = fit_effect(MODALITIES, shared_BY, cohort, share, chosen)
    assert effect.kept == 1
    assert not effect.lacking_MY.any()
    assert not any(slopes_FY.any() for slopes_FY in effect.slopes_FY.values())
    assert effect.intercept_Y.any()


def test_an_effect_survives_a_file() -> None:
    shared_BY, cohort = random_site(13, classes=3)
    both = (
        fit_intercept(MODALITIES, shared_BY, cohort, SiteSettings()),
        fit_regression(MODALITIES, cohort, 3, 1.0, SiteSettings()),
    )
    effect = SiteEffect.mean(both, (0.7, 0.3))
    again = SiteEffect.from_arrays(MODALITIES, effect.to_arrays())
    np.testing.assert_array_equal(again.logits(shared_BY, cohort), effect.logits(shared_BY, cohort))
    assert effect.kept == pytest.approx(0.7)
    arrays = effect.to_arrays()
    del arrays["lacking"]
    with pytest.raises(KeyError, match="lacking"):
        SiteEffect.from_arrays(MODALITIES, arrays)


def test_the_mean_of_effects_is_the_mean_of_their_logits() -> None:
    shared_BY, cohort = random_site(17, classes=3)
    effects = [fit_regression(MODALITIES, cohort, 3, spread, SiteSettings()) for spread in (0.3, 1.0)]
    effects.append(fit_intercept(MODALITIES, shared_BY, cohort, SiteSettings()))
    weights = (0.2, 0.5, 0.3)
    expected_BY = sum(w * one.logits(shared_BY, cohort) for w, one in zip(weights, effects, strict=True))
    np.testing.assert_allclose(SiteEffect.mean(effects, weights).logits(shared_BY, cohort), expected_BY, atol=1e-12)


def test_no_effect_changes_nothing() -> None:
    shared_BY, cohort = random_site(5, classes=3)
    none = fit_intercept(MODALITIES, shared_BY, cohort, SiteSettings(intercept=0))
    np.testing.assert_allclose(none.probabilities(shared_BY, cohort), shared_BY, rtol=1e-14)
    assert none.probabilities(shared_BY[:0], cohort.select(torch.arange(0))).shape == (0, 3)
