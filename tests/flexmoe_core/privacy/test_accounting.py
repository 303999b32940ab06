"""Epsilon against accountants of other authors, against a formula, and what must hold of it whatever the events."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from flexmoe_core.privacy.accounting import NoSuchNoise, epsilon_of, noise_multiplier_for
from flexmoe_core.privacy.events import Gaussian, PrivacyEvent, SampledGaussian, Unprotected

NUMERICAL = 1e-6


def sampled(sampling_rate: float, noise_multiplier: float, steps: int) -> SampledGaussian:
    return SampledGaussian(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps)


def gaussian(noise_multiplier: float, steps: int = 1) -> Gaussian:
    return Gaussian(noise_multiplier=noise_multiplier, steps=steps)


def independent_epsilon(events: Sequence[PrivacyEvent], delta: float, interval: float = 1e-4) -> float:
    accountant = PLDAccountant(value_discretization_interval=interval)
    for event in events:
        assert not isinstance(event, Unprotected)
        noise = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        is_sampled = isinstance(event, SampledGaussian)
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(event.sampling_rate, noise) if is_sampled else noise, event.steps
        )
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(
    ("events", "delta"),
    [
        ([sampled(0.1, 1.0, 100)], 1e-3),
        ([sampled(0.1, 4.0, 100)], 1e-3),
        ([sampled(0.3, 8.0, 400)], 1e-3),
        ([sampled(0.01, 1.0, 10_000)], 1e-5),
        ([sampled(0.001, 0.7, 100_000)], 1e-7),
        ([sampled(0.5, 2.0, 50)], 1e-5),
        ([sampled(0.99, 5.0, 100)], 1e-5),
        ([sampled(0.9, 0.5, 5)], 1e-3),
        ([sampled(0.01, 0.6, 3)], 1e-8),
        ([sampled(0.05, 3.0, 1)], 1e-3),
        ([sampled(1.0, 5.0, 10)], 1e-3),
        ([gaussian(50.0, 3)], 1e-3),
        ([sampled(0.1, 1.0, 100), sampled(0.2, 2.0, 300), gaussian(4.0)], 1e-3),
        ([sampled(0.01, 1.0, 5000), gaussian(1.0), gaussian(10.0, 3), sampled(1.0, 20.0, 7)], 1e-6),
    ],
)
def test_equals_an_independent_accountant(events: list[PrivacyEvent], delta: float) -> None:
    assert epsilon_of(events, delta) == pytest.approx(independent_epsilon(events, delta), rel=2e-4)


def test_equals_an_independent_accountant_where_epsilon_is_small() -> None:
    events = [sampled(0.01, 20.0, 1000)]
    assert epsilon_of(events, 1e-5) == pytest.approx(independent_epsilon(events, 1e-5, 1e-6), rel=1e-3)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.1, 1.0, 200), (0.02, 0.8, 2000), (0.5, 3.0, 40)])
def test_lies_below_the_upper_bound_of_another_method_and_close_to_it(rate: float, noise: float, steps: int) -> None:
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings(action="ignore"):
        bound = accountant.get_epsilon(1e-4, eps_error=0.005)
    assert bound * 0.99 < epsilon_of([sampled(rate, noise, steps)], 1e-4) <= bound


@pytest.mark.parametrize(("noise", "steps"), [(0.3, 1), (1.0, 1), (4.0, 9), (100.0, 50)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
def test_plain_gaussian_noise_equals_the_formula(noise: float, steps: int, delta: float) -> None:
    mean = math.sqrt(steps) / noise

    def excess(epsilon: float) -> float:  # Balle and Wang 2018, theorem 8
        larger = norm.logcdf(-mean / 2 - epsilon / mean)
        return float(norm.cdf(mean / 2 - epsilon / mean) - math.exp(epsilon + larger) - delta)

    exact = brentq(excess, 0, 200, xtol=1e-12) if excess(0) > 0 else 0.0
    for events in ([gaussian(noise, steps)], [sampled(1.0, noise, steps)], [gaussian(noise)] * steps):
        assert exact * (1 - NUMERICAL) <= epsilon_of(events, delta) <= exact * 1.001 + 1e-6


def test_only_an_unprotected_release_is_infinite_and_nothing_costs_nothing() -> None:
    assert epsilon_of([], 1e-3) == 0.0
    assert epsilon_of([gaussian(1.0), Unprotected()], 1e-3) == math.inf
    assert epsilon_of([gaussian(1e-4)], 1e-3) == math.inf
    assert epsilon_of([sampled(1e-5, 10.0, 1)], 0.1) == 0.0


@pytest.mark.parametrize("noise", [1e-300, 1e-9, 1e-3, 1e9, 1e300])
@pytest.mark.parametrize("rate", [1e-300, 1e-12, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("steps", [1, 10**9])
def test_no_event_is_beyond_the_accountant(rate: float, noise: float, steps: int) -> None:
    found = epsilon_of([sampled(rate, noise, steps), gaussian(noise, steps)], 1e-5)
    assert math.isinf(found) if noise < 1e-2 else 0 <= found < 1


@pytest.mark.parametrize("delta", [0.0, 1e-10, 1.0, math.nan])
def test_refuses_a_delta_that_means_nothing(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon_of([gaussian(1.0)], delta)


events_of_any_kind = st.one_of(
    st.builds(sampled, st.floats(1e-4, 1.0), st.floats(0.3, 100.0), st.integers(1, 20_000)),
    st.builds(gaussian, st.floats(0.3, 100.0), st.integers(1, 20)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(events_of_any_kind, min_size=1, max_size=4), events_of_any_kind, st.sampled_from([1e-2, 1e-3, 1e-6]))
def test_never_falls_when_an_event_is_added(events: list[PrivacyEvent], more: PrivacyEvent, delta: float) -> None:
    before, after = epsilon_of(events, delta), epsilon_of([*events, more], delta)
    assert after >= before * (1 - NUMERICAL)
    assert epsilon_of([more, *reversed(events)], delta) == pytest.approx(after, rel=NUMERICAL)


def test_never_falls_from_step_to_step() -> None:
    totals = [epsilon_of([sampled(0.05, 1.1, steps), gaussian(6.0)], 1e-3) for steps in range(1, 400, 19)]
    assert all(after > before for before, after in pairwise(totals))


def test_equal_events_cost_what_one_of_all_steps_costs() -> None:
    assert epsilon_of([sampled(0.1, 1.5, 7)] * 12, 1e-4) == epsilon_of([sampled(0.1, 1.5, 84)], 1e-4)


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps", "others"),
    [
        (8.0, 1e-3, 0.2, 300, (gaussian(4.0),)),
        (1.0, 1e-3, 0.2, 300, ()),
        (3.0, 1e-5, 0.01, 10_000, ()),
        (3.0, 1e-3, 1.0, 20, (sampled(0.3, 9.0, 50), gaussian(8.0, 2))),
        (0.01, 1e-3, 0.5, 300, ()),
    ],
)
def test_noise_keeps_the_budget_and_a_little_less_would_not(
    epsilon: float, delta: float, rate: float, steps: int, others: tuple[PrivacyEvent, ...]
) -> None:
    noise = noise_multiplier_for(epsilon, delta, rate, steps, others)
    assert noise == float(f"{noise:.4g}")
    assert epsilon_of([sampled(rate, noise, steps), *others], delta) <= epsilon
    assert epsilon_of([sampled(rate, noise * 0.999, steps), *others], delta) > epsilon


def test_no_noise_keeps_a_budget_that_others_have_used_up() -> None:
    with pytest.raises(NoSuchNoise, match="no noise keeps epsilon 1 "):
        noise_multiplier_for(1.0, 1e-3, 0.1, 100, [gaussian(1.0)])
