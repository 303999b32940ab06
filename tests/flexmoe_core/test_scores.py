from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.errors import MessageError
from flexmoe_core.scores import (
    FIXED_POINT_SCALE,
    MAXIMUM_PATIENTS,
    PROBABILITY_BINS,
    IntArray,
    Scores,
    probability_centers,
    probability_edges,
)
from tests.flexmoe_core.predictions import random_predictions

Arrays = dict[str, IntArray]
HALF = PROBABILITY_BINS // 2


def binary(*positive: float) -> np.ndarray:
    return np.array([[1 - p, p] for p in positive])


def test_edges_are_spaced_in_the_logit_with_one_at_a_half() -> None:
    edges = probability_edges()
    logits = np.log(edges / (1 - edges))
    assert len(edges) == PROBABILITY_BINS - 1
    assert edges[HALF - 1] == 0.5
    np.testing.assert_allclose(np.diff(logits), 10 / (HALF - 1), rtol=1e-6)


def test_every_center_lies_in_its_bin() -> None:
    bins = np.searchsorted(probability_edges(), probability_centers(), side="right")
    np.testing.assert_array_equal(bins, np.arange(PROBABILITY_BINS))


def test_a_half_falls_right_and_is_predicted_positive() -> None:
    scores = Scores.of(binary(0.5, np.nextafter(0.5, 0)), np.array([1, 1]))
    assert scores.histogram_Y2G[1, 1, HALF] == 1
    assert scores.histogram_Y2G[1, 1, HALF - 1] == 1
    np.testing.assert_array_equal(scores.confusion_YY, [[0, 0], [1, 1]])


def test_counts_of_two_patients_by_hand() -> None:
    scores = Scores.of(binary(0.9, 0.3), np.array([1, 1]))
    assert scores.n == 2
    np.testing.assert_array_equal(scores.confusion_YY, [[0, 0], [1, 1]])
    assert scores.squared_error == pytest.approx(0.1**2 + 0.7**2, abs=1e-8)
    assert scores.log_loss == pytest.approx(-np.log(0.9) - np.log(0.3), abs=1e-8)
    np.testing.assert_allclose(scores.reliability_R3[13], [1, 0.9, 1], atol=1e-8)
    np.testing.assert_allclose(scores.reliability_R3[10], [1, 0.7, 0], atol=1e-8)


def test_squared_error_of_several_classes_sums_over_them() -> None:
    scores = Scores.of(np.array([[0.5, 0.3, 0.2]]), np.array([1]))
    assert scores.squared_error == pytest.approx(0.25 + 0.49 + 0.04, abs=1e-8)
    np.testing.assert_array_equal(scores.confusion_YY, [[0, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_certain_and_wrong_has_a_finite_loss_and_travels() -> None:
    scores = Scores.of(binary(0.0, 1.0), np.array([1, 0]))
    assert scores.log_loss == pytest.approx(2 * -np.log(1e-15))
    assert Scores.from_arrays(scores.to_arrays()) == scores


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_no_patient(classes: int) -> None:
    scores = Scores.of(np.zeros((0, classes)), np.zeros(0, np.int64))
    assert scores == Scores.empty(classes)
    assert scores.n == 0
    assert Scores.from_arrays(scores.to_arrays()) == scores


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**31), st.sampled_from([2, 3, 9]), st.lists(st.integers(0, 40), min_size=1, max_size=5), st.data()
)
def test_batches_add_up_exactly_in_any_order(seed: int, classes: int, sizes: list[int], data: st.DataObject) -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(seed), sum(sizes), classes)
    stops = np.cumsum(sizes)
    parts = [Scores.of(p_BY[b - n : b], labels_B[b - n : b]) for n, b in zip(sizes, stops, strict=True)]
    assert sum(data.draw(st.permutations(parts)), start=Scores.empty(classes)) == Scores.of(p_BY, labels_B)
    order = np.random.default_rng(seed + 1).permutation(len(labels_B))
    assert Scores.of(p_BY[order], labels_B[order]) == Scores.of(p_BY, labels_B)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 9]), st.integers(0, 50), st.floats(0.1, 30))
def test_arrays_travel_there_and_back(seed: int, classes: int, patients: int, confidence: float) -> None:
    p_BY, labels_B = random_predictions(np.random.default_rng(seed), patients, classes, confidence)
    scores = Scores.of(p_BY.astype(np.float32), labels_B)
    arrays = scores.to_arrays()
    assert all(array.dtype == np.int64 for array in arrays.values())
    assert Scores.from_arrays(arrays, classes=classes) == scores


def test_scores_of_unequal_patients_differ() -> None:
    assert Scores.of(binary(0.6), np.array([1])) != Scores.of(binary(0.6), np.array([0]))
    assert Scores.empty(2) != Scores.empty(3)
    assert Scores.empty(2) != 0


def test_scores_of_different_classes_do_not_add() -> None:
    with pytest.raises(ValueError, match="2 and of 3 classes"):
        Scores.empty(2) + Scores.empty(3)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.array([0.5]), [0], "shape"),
        (np.ones((1, 1)), [0], "two classes"),
        (np.array([[np.nan, 0.5]]), [0], "finite"),
        (np.array([[1.5, -0.5]]), [0], "not negative"),
        (np.array([[0.2, 0.2]]), [0], "sum to one"),
        (binary(0.2), [0, 1], "one integer"),
        (binary(0.2), [0.0], "one integer"),
        (binary(0.2), [-1], "known label"),
        (binary(0.2), [2], "class indices"),
    ],
)
def test_predictions_that_are_none_are_refused(probabilities: np.ndarray, labels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scores.of(probabilities, np.array(labels))


def changed(name: str, index: tuple[int, ...], by: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][index] += by

    return change


def replaced(name: str, by: Callable[[IntArray], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = by(arrays[name])

    return change


def move_a_positive_across_the_half(arrays: Arrays) -> None:
    histogram_G = arrays["histogram_Y2G"][1, 1]
    histogram_G[np.flatnonzero(histogram_G)[-1]] -= 1
    histogram_G[0] += 1


def more_correct_than_patients(arrays: Arrays) -> None:
    reliability_R3 = arrays["reliability_fixed_R3"]
    filled = np.flatnonzero(reliability_R3[:, 0])
    excess = reliability_R3[filled[0], 0] + 1 - reliability_R3[filled[0], 2]
    reliability_R3[filled[0], 2] += excess
    reliability_R3[filled[-1], 2] -= excess


@pytest.mark.parametrize(
    ("malform", "message"),
    [
        (lambda arrays: arrays.pop("losses_fixed_2"), "losses_fixed_2 is missing"),
        (lambda arrays: arrays.update(extra=np.zeros(1, np.int64)), "1 arrays that scores do not have"),
        (replaced("confusion_YY", lambda a: a.astype(np.float64)), "confusion_YY must be an int64"),
        (replaced("confusion_YY", lambda a: a.tolist()), "confusion_YY must be an int64"),
        (replaced("confusion_YY", lambda a: a[:1]), "confusion_YY has the shape"),
        (replaced("confusion_YY", lambda a: a[:0, :0]), "confusion_YY has the shape"),
        (replaced("histogram_Y2G", lambda a: a[:, :, 1:]), "histogram_Y2G has the shape"),
        (replaced("reliability_fixed_R3", lambda a: a * np.nan), "reliability_fixed_R3 must be an int64"),
        (changed("confusion_YY", (0, 0), -1000), "confusion_YY is negative"),
        (changed("losses_fixed_2", (1,), -(2**62)), "losses_fixed_2 is negative"),
        (changed("histogram_Y2G", (0, 0, 0), 2**62), "histogram_Y2G is larger than"),
        (changed("reliability_fixed_R3", (0, 2), MAXIMUM_PATIENTS + 1), "reliability_fixed_R3 is larger than"),
        (changed("confusion_YY", (0, 0), MAXIMUM_PATIENTS - 50), f"more than {MAXIMUM_PATIENTS} patients"),
        (changed("confusion_YY", (0, 0), 1), "histogram_Y2G and confusion_YY count different"),
        (changed("histogram_Y2G", (0, 0, 3), 1), "histogram_Y2G and confusion_YY count different"),
        (move_a_positive_across_the_half, "predicted positive"),
        (changed("reliability_fixed_R3", (12, 0), 1), "reliability_fixed_R3 and confusion_YY count different"),
        (changed("reliability_fixed_R3", (12, 2), -1), "reliability_fixed_R3 and confusion_YY count different"),
        (more_correct_than_patients, "more correct patients than patients"),
        (changed("reliability_fixed_R3", (14, 1), 60 * FIXED_POINT_SCALE), "confidence outside its bin"),
        (changed("reliability_fixed_R3", (0, 1), 2), "confidence outside its bin"),
        (changed("losses_fixed_2", (0,), 100 * FIXED_POINT_SCALE), "losses_fixed_2 is larger than 100 patients"),
        (changed("losses_fixed_2", (1,), 3500 * FIXED_POINT_SCALE), "losses_fixed_2 is larger than 100 patients"),
    ],
)
def test_malformed_arrays_are_refused(malform: Callable[[Arrays], None], message: str) -> None:
    arrays = Scores.of(*random_predictions(np.random.default_rng(0), 100)).to_arrays()
    malform(arrays)
    with pytest.raises(MessageError, match=message):
        Scores.from_arrays(arrays)


def test_every_problem_of_form_is_named_at_once() -> None:
    with pytest.raises(MessageError, match=r"confusion_YY.*histogram_Y2G.*reliability_fixed_R3.*losses_fixed_2"):
        Scores.from_arrays({})


def test_the_number_of_classes_can_be_insisted_on() -> None:
    with pytest.raises(MessageError, match=r"confusion_YY has the shape \(3, 3\), not \(2, 2\)"):
        Scores.from_arrays(Scores.empty(3).to_arrays(), classes=2)


def test_received_scores_do_not_share_memory_with_the_message() -> None:
    arrays = Scores.of(binary(0.7), np.array([1])).to_arrays()
    received = Scores.from_arrays(arrays)
    arrays["confusion_YY"][:] = 0
    assert received.n == 1
