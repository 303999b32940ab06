"""The mean of a few numbers, one per seed, with its interval by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_QUANTILE = 1e6


@dataclass(frozen=True)
class SeedInterval:
    """``mean`` and standard deviation ``sd`` over ``count`` seeds; sd and interval are None for a single one."""

    count: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def seed_interval(values: Sequence[float], level: float = 0.95, redrawn: float = 0.0) -> SeedInterval:
    """Of at least one value. ``redrawn``: where each seed splits the same patients anew, the share that it tests on.

    Such splits overlap, and their values move together: the variance of the mean is that of independent seeds plus
    test/train times that of one (the corrected resampled t, Nadeau and Bengio, Machine Learning 2003).
    """
    count, mean = len(values), float(np.mean(values))
    if count == 1:
        return SeedInterval(count, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = student_quantile(0.5 + level / 2, count - 1) * sd * math.sqrt(1 / count + redrawn / (1 - redrawn))
    return SeedInterval(count, mean, sd, mean - half, mean + half)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile, above the median, of Student's t with that many degrees of freedom; by bisection."""
    low, high = 0.0, LARGEST_QUANTILE
    while high - low > 1e-9 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if student_distribution(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_distribution(t: float, freedom: int) -> float:
    """The distribution function of Student's t at t >= 0 (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    total, term = 0.0, cosine if odd else 1.0
    for factor in range(3 if odd else 2, freedom + 1, 2):
        total += term
        term *= cosine**2 * (factor - 1) / factor
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
