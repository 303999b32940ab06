"""What events cost together: epsilon over all of them at once, and the noise that keeps a budget.

Neighbors differ by one patient, added or removed. Epsilons are never added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from flexmoe_core.errors import FlexMoeError
from flexmoe_core.privacy.events import Gaussian, PrivacyEvent, SampledGaussian, Unprotected
from flexmoe_core.privacy.privacy_loss import Mechanism, epsilon_at

SMALLEST_DELTA = 1e-9
"""Below it the rounding errors of float64 count."""
LEAST_NOISE, MOST_NOISE = -2, 6
"""Powers of ten between which noise is looked for."""


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
        match event:
            case Unprotected():
                return math.inf
            case SampledGaussian(sampling_rate=rate) if rate < 1:
                mechanism = Mechanism(rate, event.noise_multiplier)
                steps[mechanism] = steps.get(mechanism, 0) + event.steps
            case SampledGaussian() | Gaussian():
                # Gaussian mechanisms compose to one whose precision is the sum of theirs
                precision += event.steps / event.noise_multiplier**2
    if precision > 0:
        steps[Mechanism(1.0, precision**-0.5)] = 1
    return epsilon_at(steps, delta) if steps else 0.0


def noise_multiplier_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, others: Sequence[PrivacyEvent] = ()
) -> float:
    """The smallest noise multiplier of four digits with which that many steps, and ``others``, keep the budget.

    Raises NoSuchNoise where even the most noise would not, as when the others have used it up.
    """
    low, high = 9000 * LEAST_NOISE, 9000 * MOST_NOISE
    if not _keeps(_grid(high), epsilon, delta, sampling_rate, steps, others):
        raise NoSuchNoise(
            f"no noise keeps epsilon {epsilon:g} at delta {delta:g} over {steps} steps and {len(others)} other "
            "releases. Raise epsilon, or release less."
        )
    while low < high:
        middle = (low + high) // 2
        if _keeps(_grid(middle), epsilon, delta, sampling_rate, steps, others):
            high = middle
        else:
            low = middle + 1
    return _grid(high)


def _keeps(
    noise: float, epsilon: float, delta: float, sampling_rate: float, steps: int, others: Sequence[PrivacyEvent]
) -> bool:
    event = SampledGaussian(sampling_rate=sampling_rate, noise_multiplier=noise, steps=steps)
    return epsilon_of([event, *others], delta) <= epsilon


def _grid(place: int) -> float:
    """Numbers of four digits in order: 1.000 at 0, 10.00 at 9000."""
    power, digits = divmod(place, 9000)
    return float(f"{1000 + digits}e{power - 3}")
