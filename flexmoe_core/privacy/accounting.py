"""What events cost together: epsilon over all of them at once, and the noise that keeps a budget.

Neighbors differ by one patient, added or removed. Epsilons are never added up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from flexmoe_core.errors import FlexMoeError
from flexmoe_core.privacy.events import PrivacyEvent, SampledGaussian, Unprotected
from flexmoe_core.privacy.privacy_loss import Mechanism, epsilon_at

SMALLEST_DELTA = 1e-9
"""Below it the rounding errors of float64 count."""
SMALLEST_EPSILON, LARGEST_EPSILON = 1e-12, 1e12
"""Between which an epsilon has a logarithm to search with."""
LEAST_NOISE, MOST_NOISE = -2, 6
"""Powers of ten between which noise is looked for; less protects nobody, more counts as if it were no more."""
SMALLEST_RATE = 1e-9
"""Smaller sampling rates count as this one."""


class NoSuchNoise(FlexMoeError, ValueError):
    """No noise keeps the budget that was asked for."""


def epsilon_of(events: Iterable[PrivacyEvent], delta: float) -> float:
    """An upper bound of the epsilon of all events together, within 1% of the truth; infinite for unprotected ones.

    It does not depend on their order, and never falls when one is added. Raises ValueError for a delta outside
    [1e-9, 1).
    """
    if not SMALLEST_DELTA <= delta < 1:
        raise ValueError(f"delta must be at least {SMALLEST_DELTA} and below 1")
    steps: dict[Mechanism, int] = {}
    precision = 0.0
    for event in events:
        if isinstance(event, Unprotected) or event.noise_multiplier < 10.0**LEAST_NOISE:
            return math.inf
        noise = min(event.noise_multiplier, 10.0**MOST_NOISE)
        if isinstance(event, SampledGaussian) and event.sampling_rate < 1:
            mechanism = Mechanism(max(event.sampling_rate, SMALLEST_RATE), noise)
            steps[mechanism] = steps.get(mechanism, 0) + event.steps
        else:  # Gaussian mechanisms compose to one whose precision is the sum of theirs
            precision += event.steps / noise**2
    if precision > 10.0 ** (-2 * LEAST_NOISE):
        return math.inf
    if not steps:
        return _gaussian_epsilon(precision**0.5, delta)
    if precision > 0:
        steps[Mechanism(1.0, precision**-0.5)] = 1
    return epsilon_at(steps, delta)


def _gaussian_epsilon(mean: float, delta: float) -> float:
    """Exact, of one Gaussian whose sensitivity is so many standard deviations (Balle & Wang 2018, eq. 6)."""

    def excess(epsilon: float) -> float:
        lost = math.exp(epsilon + log_ndtr(-mean / 2 - epsilon / mean)) if epsilon < LARGEST_EPSILON else 0.0
        return float(ndtr(mean / 2 - epsilon / mean) - lost - delta)

    if mean == 0 or excess(0.0) <= 0:
        return 0.0
    most = mean * (mean / 2 - float(ndtri(delta)))  # where the first term alone is delta
    return float(brentq(excess, 0.0, most, xtol=1e-12, rtol=1e-12))


def noise_multiplier_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, others: Sequence[PrivacyEvent] = ()
) -> float:
    """The smallest noise multiplier of four digits with which that many steps, and ``others``, keep the budget.

    Raises NoSuchNoise where even the most noise would not, as when the others have used it up.
    """

    def excess(log_noise: float) -> float:
        """How many times too large epsilon is, as a logarithm: it falls with the noise, nearly in a straight line."""
        event = SampledGaussian(sampling_rate=sampling_rate, noise_multiplier=math.exp(log_noise), steps=steps)
        found = epsilon_of([event, *others], delta)
        return math.log(min(max(found, SMALLEST_EPSILON), LARGEST_EPSILON) / epsilon)

    def keeps(place: int) -> bool:
        return excess(math.log(_grid(place))) <= 0

    if not keeps(9000 * MOST_NOISE):
        raise NoSuchNoise(
            f"no noise keeps epsilon {epsilon:g} at delta {delta:g} over {steps} steps and {len(others)} other "
            "releases. Raise epsilon, or release less."
        )
    low, high = _bracket(excess, math.log(sampling_rate * math.sqrt(steps) / epsilon))
    place = _place(math.exp(brentq(excess, low, high, xtol=1e-5) if low < high else low))
    while not keeps(place):
        place += 1
    while place > 9000 * LEAST_NOISE and keeps(place - 1):
        place -= 1
    return _grid(place)


def _bracket(excess: Callable[[float], float], guess: float) -> tuple[float, float]:
    """Logarithms of a noise that is too little and of one that is enough; equal where the least noise is enough."""
    least, most = (math.log(10.0) * power for power in (LEAST_NOISE, MOST_NOISE))
    low, high = (min(max(guess, least), most),) * 2
    while excess(high) > 0 and high < most:
        low, high = high, min(high + math.log(2.0), most)
    while low >= high and low > least:
        low = max(low - math.log(2.0), least)
        if excess(low) <= 0:
            high = low
    return low, high


def _grid(place: int) -> float:
    """Numbers of four digits in order: 1.000 at 0, 10.00 at 9000."""
    power, digits = divmod(place, 9000)
    return float(f"{1000 + digits}e{power - 3}")


def _place(noise: float) -> int:
    """The place of the largest such number that is not above the noise."""
    power = math.floor(math.log10(noise))
    return 9000 * power + min(max(math.floor(noise * 10.0 ** (3 - power)) - 1000, 0), 8999)
