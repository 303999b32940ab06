"""Privacy loss of composed Gaussian mechanisms, bounded from above by distributions on a grid.

A mechanism is a pair (P, Q) of what is released with and without one patient. Its hockey-stick divergence
H(a) = E_P max(0, 1 - a Q/P) is convex in a; joined by straight lines between the points a = exp(grid) it bounds H
from above and belongs to a discrete pair (Doroshenko et al. 2022), whose losses add up by FFT when mechanisms are
composed. Both orders of the pair are kept: to add a patient is not to remove one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter
from scipy.special import log_ndtr, logsumexp, ndtr

Array = NDArray[np.float64]

DEVIATIONS = 9.0
"""Noise beyond so many standard deviations, one in 10**19, counts as a release of everything."""
TAIL = 1e-6
"""Share of delta that the ends of the grid may cost."""
LARGEST_EPSILON = 1e4
"""Far beyond any protection: what may exceed it counts as infinite."""
CELLS_PER_SCALE, MOST_CELLS, LEAST_SCALE = 2**16, 2**21, 2.0**-6
POINTS = 2001
ORDERS = np.geomspace(1e-3, 1e5, 97)


@dataclass(frozen=True)
class Mechanism:
    """A sum with Gaussian noise over a Poisson sample; a sampling rate of 1 is the plain Gaussian mechanism."""

    sampling_rate: float
    noise_multiplier: float

    @property
    def largest_loss(self) -> float:
        """The largest privacy loss of noise that counts, in either order."""
        q, z = self.sampling_rate, self.noise_multiplier
        loss = (0.5 + DEVIATIONS * z) / z**2
        if q == 1:
            return loss
        return max(loss + math.log(q + (1.0 - q) * math.exp(-loss)), -math.log1p(q * math.expm1(-loss)))

    def divergences(self, log_a: Array) -> tuple[Array, Array]:
        """H(a) of the pair and of the pair in the other order, for logarithms of a that are not negative."""
        q, z = self.sampling_rate, self.noise_multiplier
        log_b = log_a + np.log1p((q - 1.0) * np.exp(-log_a)) - math.log(q)
        point = z * log_b + 0.5 / z
        removed = q * (ndtr(1.0 / z - point) - np.exp(log_b + log_ndtr(-point)))
        if q < 1:
            with np.errstate(divide="ignore"):  # no noise reaches a loss whose b would not be positive
                log_b = np.log1p(np.maximum(np.expm1(-log_a) / q, -1.0))
        else:
            log_b = -log_a
        point = z * log_b + 0.5 / z
        added = q * (np.exp(log_a + log_b + log_ndtr(point)) - np.exp(log_a + log_ndtr(point - 1.0 / z)))
        return np.maximum(removed, 0.0), np.maximum(added, 0.0)

    def exponents(self) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """log E exp(order * loss), at the orders and at their negatives, in both orders of the pair."""
        q, z = self.sampling_rate, self.noise_multiplier
        noise = np.linspace(-DEVIATIONS * z, 1.0 + DEVIATIONS * z, POINTS)
        without = -0.5 * (noise / z) ** 2
        loss = np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + (noise - 0.5) / z**2)
        return _exponents(without + loss, loss), _exponents(without, -loss)


def _exponents(log_weights: Array, loss: Array) -> tuple[Array, Array]:
    tilted = ORDERS[:, None] * loss
    base = log_weights - logsumexp(log_weights)
    return logsumexp(base + tilted, axis=1), logsumexp(base - tilted, axis=1)


@dataclass(frozen=True)
class _Ends:
    """Between which losses nearly all of a composition lies, by Chernoff's bound with these orders; and an epsilon
    that it is sure to keep."""

    low: float
    high: float
    low_order: float
    high_order: float
    scale: float


@dataclass(frozen=True)
class _Losses:
    """Chances of the losses -last * step ... last * step, and of one without bound."""

    chances: Array
    unbounded: float

    @property
    def places(self) -> NDArray[np.int64]:
        """The losses, in steps."""
        last = len(self.chances) // 2
        return np.arange(-last, last + 1)

    def exponent(self, order: float) -> float:
        """log E exp(order * loss / step)."""
        with np.errstate(divide="ignore"):
            return float(logsumexp(np.log(self.chances) + order * self.places))


def epsilon_at(steps: Mapping[Mechanism, int], delta: float) -> float:
    """The smallest epsilon that the bound of the composition allows at ``delta``, in the worse order of the pairs."""
    ends = _ends(steps, delta)
    if max(one.scale for one in ends) > LARGEST_EPSILON:
        return math.inf
    step = _step(ends, max(mechanism.largest_loss for mechanism in steps))
    pairs = [(_pair(mechanism, step), count) for mechanism, count in steps.items()]
    return max(
        _epsilon([(pair[order], count) for pair, count in pairs], ends[order], step, delta) for order in (0, 1)
    )


def _ends(steps: Mapping[Mechanism, int], delta: float) -> list[_Ends]:
    exponents = [(mechanism.exponents(), count) for mechanism, count in steps.items()]
    far, found = -math.log(TAIL * delta), []
    for order in (0, 1):
        up: Array = sum((count * both[order][0] for both, count in exponents), np.zeros_like(ORDERS))
        down: Array = sum((count * both[order][1] for both, count in exponents), np.zeros_like(ORDERS))
        lows, highs = -(down + far) / ORDERS, (up + far) / ORDERS
        best = lows.argmax(), highs.argmin()
        scale = float(((up - math.log(delta)) / ORDERS).min())
        found.append(_Ends(lows.max(), highs.min(), ORDERS[best[0]], ORDERS[best[1]], scale))
    return found


def _step(ends: Sequence[_Ends], largest_loss: float) -> float:
    """A power of two that only grows when mechanisms are added: grids are nested, and the bound on a coarser one is
    above that on a finer one, so that epsilon never falls."""
    scale = max(LEAST_SCALE, *(one.scale for one in ends)) / CELLS_PER_SCALE
    span = max(2 * largest_loss, *(one.high - one.low for one in ends)) / MOST_CELLS
    return float(2.0 ** math.ceil(math.log2(max(scale, span))))


def _pair(mechanism: Mechanism, step: float) -> tuple[_Losses, _Losses]:
    """The discrete pair in both orders: the second differences of the lines that join H."""
    last = max(math.ceil(mechanism.largest_loss / step), 1)
    removed, added = mechanism.divergences(step * np.arange(last + 1, dtype=np.float64))
    none = 1.0 + (removed[1] + added[1] - (1.0 + math.exp(step)) * removed[0]) / math.expm1(step)
    above, below = _above_zero(removed, step), _above_zero(added, step)
    # a loss has, in the other order, the opposite sign, and chances in the ratio of its exponential
    odds = np.exp(-step * np.arange(1, last + 1))
    return (
        _Losses(np.concatenate([(odds * below)[::-1], [max(none, 0.0)], above]), float(removed[-1])),
        _Losses(np.concatenate([(odds * above)[::-1], [max(none, 0.0)], below]), float(added[-1])),
    )


def _above_zero(divergence: Array, step: float) -> Array:
    """Chances of the losses step, 2 * step, ... under P."""
    falls = -np.diff(divergence)
    chances = falls / -math.expm1(-step)
    chances[:-1] -= falls[1:] / math.expm1(step)
    return np.maximum(chances, 0.0)


def _epsilon(parts: Sequence[tuple[_Losses, int]], ends: _Ends, step: float, delta: float) -> float:
    """Compose, and read epsilon off."""
    first, last = _window(parts, ends, step, delta)
    size = next_fast_len(last - first + 1, real=True)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    bounded = 0.0
    for losses, count in parts:
        spectrum *= rfft(np.bincount(losses.places % size, losses.chances, size)) ** count
        bounded += count * math.log1p(-losses.unbounded)
    chances = np.maximum(np.roll(irfft(spectrum, size), -first), 0.0)
    start = max(0, -first)
    # what lies outside of the window wraps around to anywhere in it: as if it were at the worst place
    return _crossing(chances[start:], (first + start) * step, step, delta + math.expm1(bounded) - 2 * TAIL * delta)


def _window(parts: Sequence[tuple[_Losses, int]], ends: _Ends, step: float, delta: float) -> tuple[int, int]:
    """First and last place that the sum of losses has, but for a chance of TAIL * delta at either end."""
    far, low, high = -math.log(TAIL * delta), ends.low_order * step, ends.high_order * step
    down = sum(count * losses.exponent(-low) for losses, count in parts)
    up = sum(count * losses.exponent(high) for losses, count in parts)
    return min(math.floor(-(down + far) / low), 0), max(math.ceil((up + far) / high), 0)


def _crossing(chances: Array, first: float, step: float, delta: float) -> float:
    """Where delta(epsilon), the sum of chances * (1 - exp(epsilon - loss)) over larger losses, falls to ``delta``."""
    if delta <= 0:
        return math.inf
    above = chances[::-1].cumsum()[::-1]
    weighted = lfilter([1.0], [1.0, -math.exp(-step)], chances[::-1])[::-1]
    held = np.flatnonzero(above - weighted <= delta)
    place = int(held[0])
    if above[place] <= delta:
        return 0.0
    return max(first + place * step + math.log((above[place] - delta) / weighted[place]), 0.0)
