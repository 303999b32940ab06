from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.baselines.logistic import (
    PENALTIES,
    best_penalty,
    held_out_logistic,
    logistic,
    pooled_logistic,
    stratified_folds,
)
from simulations.baselines.predictions import mean_log_loss, pooled
from tests.simulations.baselines.patients import prepared


def patients(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three features in different units, of which the first decides, noisily."""
    generator = np.random.default_rng(seed)
    x_BF = generator.normal(size=(count, 3)) * [1.0, 1000.0, 0.001]
    return x_BF, (x_BF[:, 0] + noise * generator.normal(size=count) > 0).astype(np.int64)


def test_it_learns_whatever_the_units() -> None:
    x_BF, labels_B = patients(400, 0.1)
    new_BF, truth_B = patients(200, 0.0, seed=1)
    predicted_BY = logistic(x_BF, labels_B, new_BF, 2, 1.0)
    assert (predicted_BY.argmax(axis=1) == truth_B).mean() > 0.95
    assert predicted_BY.sum(axis=1) == pytest.approx(1)


def test_noise_asks_for_a_stronger_penalty() -> None:
    clear, noisy = (patients(60, noise) for noise in (0.05, 20.0))
    assert best_penalty(*clear, 2, 0) < best_penalty(*noisy, 2, 0)


def test_one_class_gives_the_prior_and_a_class_never_seen_probability_zero() -> None:
    x_BF = np.eye(4)
    assert logistic(x_BF, np.zeros(4, np.int64), x_BF[:1], 3, 1.0).tolist() == [[1.0, 0.0, 0.0]]
    assert logistic(x_BF, np.array([0, 2, 0, 2]), x_BF, 3, 1.0)[:, 1].tolist() == [0.0] * 4


def test_too_few_patients_of_a_class_cannot_be_tuned_for() -> None:
    assert best_penalty(np.eye(4), np.array([0, 0, 0, 1]), 2, 0) == max(PENALTIES)
    assert best_penalty(np.eye(4), np.zeros(4, np.int64), 2, 0) == max(PENALTIES)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(2, 5))
def test_folds_hold_out_every_patient_once_and_every_class_each_time(labels: list[int], most: int) -> None:
    labels_B = np.array(labels)
    folds = stratified_folds(labels_B, most, 0)
    if not folds:
        assert len(set(labels)) == 1 or min(map(labels.count, set(labels))) < 2
        return
    assert len(folds) <= most
    assert sorted(np.concatenate(folds)) == list(range(len(labels)))
    assert all(set(labels_B[fold]) == set(labels) for fold in folds)


def test_held_out_patients_are_predicted_by_the_others_alone() -> None:
    x_BF, labels_B = patients(60, 0.5)
    folds = stratified_folds(labels_B, 3, 0)
    before = held_out_logistic(x_BF, labels_B, 2, 1.0, folds)
    changed_B = labels_B.copy()
    changed_B[folds[0]] = 1 - changed_B[folds[0]]
    after = held_out_logistic(x_BF, changed_B, 2, 1.0, folds)
    assert np.array_equal(before[folds[0]], after[folds[0]])
    assert not np.allclose(before[folds[1]], after[folds[1]])


def test_pooling_predicts_every_test_patient_and_repeats_itself(tmp_path: Path) -> None:
    study, _, sites = prepared(tmp_path / "study", patients_per_site=150)
    predictions = pooled_logistic(study, sites, 0)
    again = pooled(pooled_logistic(study, sites, 0))
    assert all(predictions[name].ids == data.ids["test"] for name, data in sites.items())
    assert np.array_equal(pooled(predictions).probabilities_BY, again.probabilities_BY)
    assert mean_log_loss(again.probabilities_BY, again.labels_B) < np.log(2) - 0.05
