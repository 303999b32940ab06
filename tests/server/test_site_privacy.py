"""Noise of site-level privacy at the coordinator: on the sum, divided by the cohort whoever answered."""

from __future__ import annotations

import numpy as np
import pytest

from flexmoe_core.privacy.secret_source import OperatingSystemSource
from flexmoe_core.privacy.settings import SitePrivacy
from flexmoe_core.update import TensorSpec, Update
from server.aggregation import Aggregate, FixedPointSum
from server.site_privacy import SiteLevelNoise

SPECS = (TensorSpec("a", (300, 4), 300),)
SETTINGS = SitePrivacy(epsilon=5.0, clip=2.0, cohort=4)


def mean_of(values: list[float]) -> Aggregate:
    total = FixedPointSum(SPECS)
    for value in values:
        total.add(Update({"a": np.full((300, 4), value, np.float32)}, {"a": np.ones(300)}))
    return total.mean()


def test_the_sum_is_divided_by_the_cohort_and_not_by_who_answered() -> None:
    noise = SiteLevelNoise(SETTINGS, 3, OperatingSystemSource())
    found = noise.protect(mean_of([1.0, 3.0]), noised_by_sites=True)
    np.testing.assert_allclose(found.delta["a"], 4.0 / 4)
    assert (found.support["a"] == 4.0).all()


def test_noise_has_the_deviation_that_was_calculated_and_is_not_repeated() -> None:
    noise = SiteLevelNoise(SETTINGS, 3, OperatingSystemSource())
    first, second = (noise.protect(mean_of([1.0, 3.0])).delta["a"] for _ in range(2))
    assert first.std() == pytest.approx(noise.noise_multiplier * SETTINGS.clip / SETTINGS.cohort, rel=0.1)
    assert first.mean() == pytest.approx(1.0, abs=0.5)
    assert not np.array_equal(first, second)


def test_all_rounds_cost_what_was_promised_and_fewer_cost_less() -> None:
    noise = SiteLevelNoise(SETTINGS, 3, OperatingSystemSource())
    spent = [noise.spent(rounds) for rounds in range(4)]
    assert spent == sorted(spent)
    assert spent[0] == 0.0
    assert 0.99 * SETTINGS.epsilon < spent[3] <= SETTINGS.epsilon
