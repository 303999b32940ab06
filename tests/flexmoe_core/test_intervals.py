from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flexmoe_core.intervals import auroc_of, bootstrap_interval, paired_bootstrap_difference
from flexmoe_core.score_metrics import METRICS, SUMMARY_METRICS
from flexmoe_core.scores import IntArray, Scores
from tests.flexmoe_core.predictions import random_predictions


def accuracy_of(predictions_BY: np.ndarray, labels_B: IntArray) -> float:
    return float((predictions_BY.argmax(axis=1) == labels_B).mean())


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "auroc", "auprc", "brier"])
def test_an_interval_of_bins_agrees_with_resampled_patients(metric: str) -> None:
    generator = np.random.default_rng(0)
    p_BY, labels_B = random_predictions(generator, 250, confidence=1.3)
    compute = METRICS[metric].compute
    draws = (generator.integers(0, 250, 250) for _ in range(400))
    resampled = [compute(Scores.of(p_BY[index], labels_B[index])) for index in draws]
    interval = bootstrap_interval(Scores.of(p_BY, labels_B), metric, generator)
    width = np.subtract(*np.quantile(np.array(resampled, dtype=np.float64), [0.975, 0.025]))
    assert interval is not None
    np.testing.assert_allclose(
        interval, np.quantile(np.array(resampled, dtype=np.float64), [0.025, 0.975]), atol=0.15 * width
    )


@pytest.mark.parametrize("confidence", [1.0, 1.5])
def test_intervals_cover_the_value_of_the_population(confidence: float) -> None:
    generator = np.random.default_rng(1)
    population = Scores.of(*random_predictions(generator, 200_000, confidence=confidence))
    truths = {name: METRICS[name].compute(population) for name in SUMMARY_METRICS}
    covered = dict.fromkeys(SUMMARY_METRICS, 0)
    for _ in range(60):
        scores = Scores.of(*random_predictions(generator, 400, confidence=confidence))
        for name, truth in truths.items():
            interval = bootstrap_interval(scores, name, generator, resamples=200)
            assert interval is not None
            assert truth is not None
            covered[name] += interval[0] <= truth <= interval[1]
    assert min(covered.values()) >= 50, covered  # of 60; binomial(60, 0.93) is below that once in a hundred


def test_intervals_are_wider_at_a_higher_level_and_narrower_with_more_patients() -> None:
    generator = np.random.default_rng(2)
    few, many = (Scores.of(*random_predictions(generator, n)) for n in (100, 2000))

    def width(scores: Scores, level: float) -> float:
        low, high = bootstrap_interval(scores, "auroc", np.random.default_rng(3), level=level) or (0.0, 0.0)
        return high - low

    assert width(few, 0.99) > width(few, 0.8) > width(many, 0.8) > 0


def test_the_same_generator_gives_the_same_interval() -> None:
    scores = Scores.of(*random_predictions(np.random.default_rng(4), 150))
    first, second = (bootstrap_interval(scores, "auprc", np.random.default_rng(5)) for _ in range(2))
    assert first == second


def test_metrics_without_an_interval() -> None:
    generator = np.random.default_rng(6)
    two, three = (Scores.of(*random_predictions(generator, 300, classes)) for classes in (2, 3))
    assert bootstrap_interval(two, "log_loss", generator) is None
    assert [name for name in METRICS if bootstrap_interval(three, name, generator) is None] == [
        "auroc",
        "auprc",
        "brier",
        "log_loss",
    ]
    assert all(bootstrap_interval(Scores.empty(2), name, generator) is None for name in METRICS)
    with pytest.raises(KeyError):
        bootstrap_interval(two, "auc", generator)


def test_a_perfect_model_has_a_point_for_an_interval() -> None:
    labels_B = np.repeat([0, 1], 20)
    scores = Scores.of(np.eye(2)[labels_B], labels_B)
    for name, value in (("accuracy", 1.0), ("macro_f1", 1.0), ("auroc", 1.0), ("brier", 0.0), ("ece", 0.0)):
        assert bootstrap_interval(scores, name, np.random.default_rng(7)) == pytest.approx((value, value), abs=1e-8)


def test_the_interval_of_brier_belongs_to_the_exact_score_not_the_binned_one() -> None:
    scores = Scores.of(np.full((30, 2), 0.5), np.ones(30, np.int64))  # 0.5 is the edge of a bin, not its center
    assert bootstrap_interval(scores, "brier", np.random.default_rng(7)) == pytest.approx((0.25, 0.25))


def test_a_thousand_resamples_are_quick() -> None:
    scores = Scores.of(*random_predictions(np.random.default_rng(8), 5000))
    start = time.perf_counter()
    bootstrap_interval(scores, "auroc", np.random.default_rng(9))
    assert time.perf_counter() - start < 0.3


def test_exact_auroc_equals_sklearn_with_and_without_ties() -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(10), 200)
    for positive_B in (p_BY[:, 1], p_BY[:, 1].round(1)):
        assert auroc_of(positive_B, labels_B) == pytest.approx(roc_auc_score(labels_B, positive_B))
    assert auroc_of(p_BY[:, 1], np.zeros_like(labels_B)) is None
    assert auroc_of(p_BY[:0, 1], labels_B[:0]) is None


def test_a_model_never_differs_from_itself() -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(11), 80)
    difference = paired_bootstrap_difference(
        accuracy_of, p_BY, p_BY, labels_B, np.random.default_rng(12), resamples=50
    )
    assert difference == (0.0, 0.0, 0.0)


def test_a_better_model_is_found_better_with_either_shape_of_predictions() -> None:
    generator = np.random.default_rng(13)
    p_BY, labels_B = random_predictions(generator, 300)
    blurred_BY = (p_BY + generator.dirichlet([1, 1], 300)) / 2
    by_class = paired_bootstrap_difference(accuracy_of, p_BY, blurred_BY, labels_B, generator, resamples=200)
    ranked = paired_bootstrap_difference(auroc_of, p_BY[:, 1], blurred_BY[:, 1], labels_B, generator, resamples=200)
    for result in (by_class, ranked):
        assert result is not None
        difference, low, high = result
        assert 0 < low < difference < high


def test_pairing_is_narrower_than_two_separate_intervals() -> None:
    generator = np.random.default_rng(14)
    p_BY, labels_B = random_predictions(generator, 300)
    close_BY = 0.95 * p_BY + 0.05 * generator.dirichlet([1, 1], 300)
    _, low, high = paired_bootstrap_difference(
        auroc_of, p_BY[:, 1], close_BY[:, 1], labels_B, generator, resamples=200
    ) or (0.0, 0.0, 1.0)
    alone = bootstrap_interval(Scores.of(p_BY, labels_B), "auroc", generator) or (0.0, 0.0)
    assert high - low < (alone[1] - alone[0]) / 2


def test_strata_keep_their_sizes_in_every_resample() -> None:
    labels_B = np.repeat([0, 1], [30, 5])
    shares: list[float] = []

    def share_of_positives(predictions_B: np.ndarray, labels_B: IntArray) -> float:
        shares.append(float(labels_B.mean()))
        return float(predictions_B.mean())

    paired_bootstrap_difference(
        share_of_positives,
        np.arange(35.0),
        np.arange(35.0)[::-1].copy(),
        labels_B,
        np.random.default_rng(15),
        resamples=20,
        strata_B=labels_B,
    )
    assert set(shares) == {5 / 35}
    assert len(shares) == 2 * 21


def test_resamples_without_a_value_are_left_out() -> None:
    labels_B = np.array([1, 0, 0, 0])
    predictions_B = np.array([0.9, 0.1, 0.2, 0.3])
    generator = np.random.default_rng(16)
    result = paired_bootstrap_difference(
        auroc_of, predictions_B, 1 - predictions_B, labels_B, generator, resamples=50
    )
    assert result == (1.0, 1.0, 1.0)
    nothing = np.zeros_like(labels_B)
    assert paired_bootstrap_difference(auroc_of, predictions_B, predictions_B, nothing, generator) is None
