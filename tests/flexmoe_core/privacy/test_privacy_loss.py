"""The bound of privacy losses, against the integrals that define it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import norm

from flexmoe_core.privacy.privacy_loss import Mechanism, _pair

MECHANISMS = [Mechanism(0.2, 1.5), Mechanism(0.01, 0.7), Mechanism(0.9, 3.0), Mechanism(1.0, 2.0)]


def integral(mechanism: Mechanism, log_a: float, swapped: bool) -> float:
    """E_P max(0, 1 - a Q/P), P being the noised sum with the patient unless swapped."""
    q, z = mechanism.sampling_rate, mechanism.noise_multiplier
    x = np.linspace(-12 * z, 1 + 12 * z, 400_001)
    without = norm.pdf(x, 0, z)
    within = (1 - q) * without + q * norm.pdf(x, 1, z)
    first, second = (without, within) if swapped else (within, without)
    return float(trapezoid(np.maximum(first - np.exp(log_a) * second, 0.0), x))


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_divergences_are_their_integrals_in_both_orders(mechanism: Mechanism) -> None:
    log_a = np.array([0.0, 0.003, 0.05, 0.2, 0.8, 2.0])
    removed, added = mechanism.divergences(log_a)
    assert removed == pytest.approx([integral(mechanism, one, False) for one in log_a], abs=1e-9)
    assert added == pytest.approx([integral(mechanism, one, True) for one in log_a], abs=1e-9)
    assert removed[0] == pytest.approx(added[0], abs=1e-15)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
@pytest.mark.parametrize("order", [0, 1])
def test_the_discrete_pair_is_exact_on_the_grid_and_above_between(mechanism: Mechanism, order: int) -> None:
    step = 0.03
    losses = _pair(mechanism, step)[order]
    assert losses.chances.sum() + losses.unbounded == pytest.approx(1.0, abs=1e-12)
    assert (losses.chances >= 0).all()

    def delta(epsilon: float) -> float:
        loss = losses.places * step
        larger = loss > epsilon
        return float(losses.chances[larger] @ -np.expm1(epsilon - loss[larger]) + losses.unbounded)

    for place in (0.0, 1.0, 1.5, 2.3, 7.0, 7.9):
        exact = float(mechanism.divergences(np.array([place * step]))[order][0])
        if place == int(place):
            assert delta(place * step) == pytest.approx(exact, abs=1e-12)
        else:
            assert delta(place * step) >= exact - 1e-13
            assert delta(place * step) == pytest.approx(exact, abs=step**2 * 4)
    for place in (-1.5, -4.0):  # H(a) of one order is a * H(1/a) + 1 - a of the other
        other = float(mechanism.divergences(np.array([-place * step]))[1 - order][0])
        exact = np.exp(place * step) * other - np.expm1(place * step)
        assert delta(place * step) >= exact - 1e-12
