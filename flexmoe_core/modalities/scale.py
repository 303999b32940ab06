"""Plausible ranges of measurements, and the scale that they fix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor

from flexmoe_core.validation import Finding, raise_if_any

LARGEST_VALUE = 1e15
EDGE = 2.0
"""Where the limits of a scale come to lie."""
Limits = tuple[float, float]


def _open_interval(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not (high - low) / 4 > 0:
        raise_if_any([Finding("is empty", "Write the lower limit first, then a greater one.")])
    return limits


Limit = Annotated[float, Field(strict=True, ge=-LARGEST_VALUE, le=LARGEST_VALUE)]
Range = Annotated[tuple[Limit, Limit], AfterValidator(_open_interval)]
"""The plausible limits of a measurement."""


def scaled(values_B: Tensor, limits: Limits | tuple[Tensor, Tensor]) -> Tensor:
    """The values on the scale on which the limits are -2 and +2: one unit is roughly one standard deviation."""
    low, high = limits
    return (values_B - (low + high) / 2) / ((high - low) / 4)


def squeezed(scaled_B: Tensor) -> Tensor:
    """Unchanged from -2 to +2, logarithmic beyond, without a kink: extreme values stay so, and drown no others."""
    beyond_B = (scaled_B.abs() - EDGE).clamp(min=0.0)
    return scaled_B.clamp(-EDGE, EDGE) + scaled_B.sign() * beyond_B.log1p()


def typical_findings(typical: Limits | None, plausible: Limits | None) -> Iterator[Finding]:
    """What is wrong with the typical limits of a measurement beside its plausible ones."""
    if typical is None:
        return
    if plausible is None:
        yield Finding("stands without a range", "Declare the plausible range too.", "typical")
    elif not plausible[0] <= typical[0] < typical[1] <= plausible[1]:
        what = f"does not lie within the plausible range {plausible[0]:.15g} to {plausible[1]:.15g}"
        yield Finding(what, "Narrow it, or widen the range.", "typical")


def fitted_range(values_B: Tensor) -> tuple[float, float]:
    """Mean +- 2 standard deviations of the present values (NaN where missing), so that ``scaled`` standardizes.

    Where all are equal, or there is none, the unit of measurement stays the scale.
    """
    present_B = values_B[~values_B.isnan()]
    if not len(present_B):
        return range_of(0.0, 0.0)
    return range_of(present_B.mean().item(), present_B.std(correction=0).item())


def range_of(mean: float, deviation: float) -> tuple[float, float]:
    """Mean +- 2 standard deviations; without any deviation the unit of measurement is the scale."""
    if deviation <= 1e-9 * abs(mean):
        deviation = max(1.0, 1e-9 * abs(mean))
    return mean - 2 * deviation, mean + 2 * deviation
