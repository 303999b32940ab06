import numpy as np
import pytest

from flexmoe_core.score_metrics import METRICS
from flexmoe_core.scores import Scores
from server.report.calibration import confidence_reliability, risk_reliability, wilson_interval
from tests.flexmoe_core.predictions import random_predictions


def scores_of(patients: int, classes: int = 2) -> Scores:
    return Scores.of(*random_predictions(np.random.default_rng(1), patients, classes, confidence=1.5))


@pytest.mark.parametrize("classes", [2, 3])
def test_ece_is_the_mean_distance_of_the_points_from_the_diagonal(classes: int) -> None:
    scores = scores_of(400, classes)
    points = confidence_reliability(scores)
    distance = np.abs(points.predicted_R - points.observed_R)
    assert np.average(distance, weights=points.count_R) == pytest.approx(METRICS["ece"].compute(scores))


def test_risk_counts_every_patient_and_every_positive_once() -> None:
    scores = scores_of(300)
    points = risk_reliability(scores)
    assert points.count_R.sum() == 300
    assert (points.count_R * points.observed_R).sum() == pytest.approx(scores.confusion_YY[1].sum())
    assert (np.diff(points.predicted_R) > 0).all()


def test_wilson_interval_of_a_known_case() -> None:
    low, high = wilson_interval(np.array([10.0]), np.array([0.9]))  # R: prop.test(9, 10, correct = FALSE)
    assert (low[0], high[0]) == (pytest.approx(0.5958500, abs=1e-6), pytest.approx(0.9821238, abs=1e-6))
