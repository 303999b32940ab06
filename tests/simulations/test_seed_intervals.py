import math

import numpy as np
import pytest

from simulations.seed_intervals import seed_interval, student_distribution, student_quantile

# Student's t, two-sided 95% (any printed table)
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042, 100: 1.984}


@pytest.mark.parametrize("freedom", QUANTILES)
def test_quantiles_are_those_of_the_tables(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(QUANTILES[freedom], abs=5e-4)
    assert student_distribution(student_quantile(0.9, freedom), freedom) == pytest.approx(0.9)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    found = [seed_interval(list(generator.normal(size=5))) for _ in range(1000)]
    covered = sum(one.low is not None and one.high is not None and one.low <= 0 <= one.high for one in found)
    assert covered == pytest.approx(950, abs=25)


def test_one_seed_has_no_interval() -> None:
    found = seed_interval([0.7])
    assert (found.mean, found.sd, found.low, found.high) == (0.7, None, None, None)


def test_the_formula() -> None:
    found = seed_interval([0.0, 1.0, 2.0])
    assert (found.count, found.mean, found.sd) == (3, 1.0, 1.0)
    assert found.high == pytest.approx(1 + 4.3027 / math.sqrt(3), abs=1e-4)


def test_splits_of_the_same_patients_are_corrected_for_their_overlap() -> None:
    """Means of patients' values over random halves: their spread says nothing of the patients that all share."""
    generator = np.random.default_rng(0)
    covered = {0.0: 0, 0.5: 0}
    for _ in range(400):
        patients = generator.normal(size=60)
        values = [float(generator.permutation(patients)[:30].mean()) for _ in range(10)]
        for redrawn in covered:
            found = seed_interval(values, redrawn=redrawn)
            assert found.low is not None and found.high is not None
            covered[redrawn] += found.low <= 0 <= found.high
    assert covered[0.0] < 0.75 * 400
    assert covered[0.5] > 0.9 * 400


def test_the_correction_is_that_of_nadeau_and_bengio() -> None:
    plain, corrected = seed_interval([0.0, 1.0, 2.0]), seed_interval([0.0, 1.0, 2.0], redrawn=0.25)
    assert plain.high is not None and corrected.high is not None
    assert corrected.mean == plain.mean
    assert (corrected.high - 1.0) / (plain.high - 1.0) == pytest.approx(((1 / 3 + 1 / 3) / (1 / 3)) ** 0.5)
