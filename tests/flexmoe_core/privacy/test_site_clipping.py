"""Site-level privacy at the site: one bound for all of an update, equal weights, and shares of noise under masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.privacy.calibration import site_noise_multiplier
from flexmoe_core.privacy.secret_source import OperatingSystemSource
from flexmoe_core.privacy.settings import SecureAggregation, SitePrivacy
from flexmoe_core.privacy.site_clipping import clipped_update, noise_share, with_noise
from flexmoe_core.secure_aggregation.bounds import smallest_sum
from flexmoe_core.update import TensorSpec, Update

SPECS = (TensorSpec("a", (4, 3), 4), TensorSpec("b", (50,), 1))


def moved(scale: float, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    before = {spec.name: generator.normal(size=spec.shape).astype(np.float32) for spec in SPECS}
    after = {name: one + scale * generator.normal(size=one.shape).astype(np.float32) for name, one in before.items()}
    return before, after


def norm(update: Update) -> float:
    return math.sqrt(sum(float(np.square(one.astype(np.float64)).sum()) for one in update.weighted.values()))


@given(scale=st.floats(1e-3, 1e4), clip=st.floats(1e-2, 1e2), seed=st.integers(0, 100))
def test_the_whole_update_is_bounded_whatever_the_site_trained(scale: float, clip: float, seed: int) -> None:
    before, after = moved(scale, seed)
    assert norm(clipped_update(SPECS, before, after, clip)) <= clip


def test_a_short_update_stays_as_it_is_and_every_weight_is_one() -> None:
    before, after = moved(1e-3)
    update = clipped_update(SPECS, before, after, 10.0)
    for name in before:
        np.testing.assert_allclose(update.weighted[name], after[name] - before[name], rtol=1e-5, atol=1e-9)
    assert {name: one.tolist() for name, one in update.support.items()} == {"a": [1.0] * 4, "b": [1.0]}


def test_nothing_moved_is_nothing() -> None:
    before, _ = moved(1.0)
    assert norm(clipped_update(SPECS, before, before, 1.0)) == 0.0


@pytest.mark.parametrize(("sites", "threshold", "colluding"), [(4, 3, 0), (6, 4, 0), (10, 7, 2), (3, 3, 1)])
def test_shares_of_the_smallest_sum_are_the_noise_that_was_promised(
    sites: int, threshold: int, colluding: int
) -> None:
    privacy = SitePrivacy(epsilon=4.0, clip=0.5, cohort=sites)
    masks = SecureAggregation(threshold=threshold, colluding=colluding)
    share = noise_share(privacy, 10, masks, sites)
    promised = site_noise_multiplier(privacy, 10) * privacy.clip
    assert share * math.sqrt(smallest_sum(masks, sites)) == pytest.approx(promised)
    assert smallest_sum(masks, sites) <= threshold - colluding


def test_noise_has_its_deviation_in_every_tensor_and_is_another_each_time() -> None:
    nothing = Update({"a": np.zeros((200, 3), np.float32), "b": np.zeros(500, np.float32)}, {})
    first, second = (with_noise(nothing, 3.0, OperatingSystemSource()).weighted for _ in range(2))
    for name in nothing.weighted:
        assert first[name].std() == pytest.approx(3.0, rel=0.15)
        assert not np.array_equal(first[name], second[name])
