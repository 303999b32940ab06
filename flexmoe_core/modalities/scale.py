"""Plausible ranges of measurements, and the scale that they fix."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from torch import Tensor

from flexmoe_core.validation import Finding, raise_if_any

LARGEST_VALUE = 1e15


def _open_interval(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not (high - low) / 4 > 0:
        raise_if_any([Finding("is empty", "Write the lower limit first, then a greater one.")])
    return limits


Limit = Annotated[float, Field(strict=True, ge=-LARGEST_VALUE, le=LARGEST_VALUE)]
Range = Annotated[tuple[Limit, Limit], AfterValidator(_open_interval)]
"""The plausible limits of a measurement."""


def scaled(values_B: Tensor, limits: tuple[float, float] | tuple[Tensor, Tensor]) -> Tensor:
    """The values on the scale on which the limits are -2 and +2: one unit is roughly one standard deviation."""
    low, high = limits
    return (values_B - (low + high) / 2) / ((high - low) / 4)


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
