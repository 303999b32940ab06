from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from flexmoe_core.score_metrics import (
    METRICS,
    MINIMUM_CLASS_COUNT,
    accuracy,
    auprc,
    auprc_bounds,
    auroc,
    auroc_bounds,
    brier,
    ece,
    log_loss,
    macro_f1,
    summary,
)
from flexmoe_core.scores import RELIABILITY_BINS, Scores, probability_centers, probability_edges
from tests.flexmoe_core.predictions import random_predictions

SEEDS = st.integers(0, 2**31)


def binned(probabilities: np.ndarray) -> np.ndarray:
    return np.searchsorted(probability_edges(), probabilities, side="right")


def test_summary_names_every_metric() -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(0), 200)
    numbers = summary(Scores.of(p_BY, labels_B))
    assert list(numbers) == ["n", "n_positive", "accuracy", "macro_f1", "auroc", "auprc", "brier", "ece"]
    assert numbers["n"] == 200
    assert numbers["n_positive"] == labels_B.sum()
    assert None not in numbers.values()


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.sampled_from([2, 3, 5]))
def test_metrics_equal_those_of_sklearn(seed: int, classes: int) -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(seed), 300, classes, confidence=1.5)
    scores = Scores.of(p_BY, labels_B)
    predicted_B = p_BY.argmax(axis=1)
    assert accuracy(scores) == pytest.approx(sklearn_metrics.accuracy_score(labels_B, predicted_B))
    assert macro_f1(scores) == pytest.approx(sklearn_metrics.f1_score(labels_B, predicted_B, average="macro"))
    assert log_loss(scores) == pytest.approx(sklearn_metrics.log_loss(labels_B, p_BY), abs=1e-8)
    if classes == 2:
        assert brier(scores) == pytest.approx(sklearn_metrics.brier_score_loss(labels_B, p_BY[:, 1]), abs=1e-8)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(30, 400), st.floats(0.05, 4))
def test_ranking_metrics_equal_sklearn_on_bins_and_bound_it_on_predictions(
    seed: int, patients: int, confidence: float
) -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(seed), patients, confidence=confidence)
    scores, positive_B = Scores.of(p_BY, labels_B), p_BY[:, 1]
    if min(labels_B.sum(), (1 - labels_B).sum()) < MINIMUM_CLASS_COUNT:
        assert all(rank(scores) is None for rank in (auroc, auroc_bounds, auprc, auprc_bounds))
        return
    for value, bounds, reference in (
        (auroc(scores), auroc_bounds(scores), sklearn_metrics.roc_auc_score),
        (auprc(scores), auprc_bounds(scores), sklearn_metrics.average_precision_score),
    ):
        assert value is not None
        assert bounds is not None
        assert value == pytest.approx(reference(labels_B, binned(positive_B)))
        assert bounds[0] - 1e-12 <= value <= bounds[1] + 1e-12
        assert bounds[0] - 1e-12 <= reference(labels_B, positive_B) <= bounds[1] + 1e-12


def test_ranking_metrics_are_exact_when_no_bin_holds_two_patients() -> None:
    generator = np.random.default_rng(1)
    positive_B = generator.permutation(probability_centers())[:120]
    labels_B = (generator.random(120) < positive_B).astype(np.int64)
    scores = Scores.of(np.stack([1 - positive_B, positive_B], axis=1), labels_B)
    exact_auroc = sklearn_metrics.roc_auc_score(labels_B, positive_B)
    exact_auprc = sklearn_metrics.average_precision_score(labels_B, positive_B)
    assert (auroc(scores), *(auroc_bounds(scores) or ())) == pytest.approx([exact_auroc] * 3)
    assert (auprc(scores), *(auprc_bounds(scores) or ())) == pytest.approx([exact_auprc] * 3)


def test_ties_won_and_lost_are_the_extremes_of_one_shared_bin() -> None:
    labels_B = np.repeat([0, 1], 10)
    scores = Scores.of(np.full((20, 2), 0.5), labels_B)
    assert auroc(scores) == 0.5
    assert auroc_bounds(scores) == (0.0, 1.0)
    assert auprc(scores) == 0.5
    worst = np.mean(np.arange(1, 11) / np.arange(11, 21))
    assert auprc_bounds(scores) == pytest.approx((worst, 1.0))


def test_several_classes_are_averaged_one_against_the_rest() -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(2), 400, classes=4)
    scores = Scores.of(p_BY, labels_B)
    each = [
        (
            sklearn_metrics.roc_auc_score(labels_B == k, binned(p_BY[:, k])),
            sklearn_metrics.average_precision_score(labels_B == k, binned(p_BY[:, k])),
        )
        for k in range(4)
    ]
    assert (auroc(scores), auprc(scores)) == pytest.approx(tuple(np.mean(each, axis=0)))
    assert summary(scores)["n_positive"] is None


def test_brier_of_several_classes_sums_over_them() -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(3), 100, classes=3)
    expected = ((p_BY - np.eye(3)[labels_B]) ** 2).sum(axis=1).mean()
    assert brier(Scores.of(p_BY, labels_B)) == pytest.approx(expected, abs=1e-8)


def test_calibration_error_by_its_definition() -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(4), 500, confidence=2.0)
    confidence_B, correct_B = p_BY.max(axis=1), p_BY.argmax(axis=1) == labels_B
    bins_B = np.floor(confidence_B * RELIABILITY_BINS)
    gaps = [
        (bins_B == r).mean() * abs(confidence_B[bins_B == r].mean() - correct_B[bins_B == r].mean())
        for r in np.unique(bins_B)
    ]
    assert ece(Scores.of(p_BY, labels_B)) == pytest.approx(sum(gaps), abs=1e-8)


def test_nothing_is_defined_without_patients() -> None:
    assert set(summary(Scores.empty(2)).values()) == {0, None}
    assert all(metric.compute(Scores.empty(3)) is None for metric in METRICS.values())


def test_one_class_alone_has_an_accuracy_but_no_ranking() -> None:
    numbers = summary(Scores.of(np.array([[0.8, 0.2]] * 30), np.zeros(30, np.int64)))
    assert (numbers["accuracy"], numbers["n_positive"]) == (1.0, 0)
    assert numbers["macro_f1"] is numbers["auroc"] is numbers["auprc"] is None


@pytest.mark.parametrize(("positives", "negatives", "defined"), [(10, 10, True), (9, 30, False), (30, 9, False)])
def test_rankings_need_ten_of_each(positives: int, negatives: int, defined: bool) -> None:
    labels_B = np.repeat([1, 0], [positives, negatives])
    scores = Scores.of(np.full((len(labels_B), 2), 0.5), labels_B)
    assert (auroc(scores) is not None) == (auprc(scores) is not None) == defined


def test_one_rare_class_leaves_several_without_a_ranking() -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(5), 300, classes=3)
    keep = (labels_B < 2) | (np.cumsum(labels_B == 2) < MINIMUM_CLASS_COUNT)
    assert auroc(Scores.of(p_BY[keep], labels_B[keep])) is None


def test_better_predictions_score_better_in_the_direction_that_each_metric_states() -> None:
    generator = np.random.default_rng(6)
    labels_B = generator.integers(0, 2, 400)
    noise_B = generator.normal(size=400)

    def scores_at(signal: float) -> Scores:
        positive_B = 1 / (1 + np.exp(-(signal * (2 * labels_B - 1) + 0.5 * noise_B)))
        return Scores.of(np.stack([1 - positive_B, positive_B], axis=1), labels_B)

    for name, metric in METRICS.items():
        worse, better = metric.compute(scores_at(0.5)), metric.compute(scores_at(2.0))
        assert worse is not None
        assert better is not None
        assert (better > worse) == metric.higher_is_better, name
        assert metric.name == name
