"""Secret randomness: distributions as they should be, and no two runs alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from flexmoe_core.privacy.secret_source import (
    OperatingSystemSource,
    SecretSource,
    choose_each,
    noised,
    standard_normal,
    uniform,
)


class Recorded:
    """Hands out given bits, to see the extremes."""

    secret = False

    def __init__(self, value: int) -> None:
        self._value = value

    def bits(self, count: int) -> torch.Tensor:
        return torch.full((count,), self._value, dtype=torch.int64)


def test_two_sources_and_two_draws_differ() -> None:
    one, other = OperatingSystemSource(), OperatingSystemSource()
    draws = [one.bits(4), one.bits(4), other.bits(4)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


def test_no_seed_of_torch_or_numpy_reaches_the_noise() -> None:
    def draw() -> list[float]:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        return noised(OperatingSystemSource(), torch.zeros(5), 1.0).tolist()

    assert draw() != draw()


@pytest.mark.parametrize(("bits", "expected"), [(-(2**63), 2.0**-53), (2**63 - 1, 1.0)])
def test_uniform_numbers_lie_in_the_half_open_interval(bits: int, expected: float) -> None:
    assert uniform(Recorded(bits), 1).item() == expected


def test_noise_is_normal() -> None:
    drawn = standard_normal(OperatingSystemSource(), torch.Size((200, 101))).flatten().numpy()
    assert kstest(drawn, "norm").pvalue > 1e-6
    halves = drawn[:10_000], drawn[10_000:20_000]
    assert abs(np.corrcoef(*halves)[0, 1]) < 0.06


def test_noise_keeps_the_shape_and_counts_nothing_from_nothing() -> None:
    source: SecretSource = OperatingSystemSource()
    assert standard_normal(source, torch.Size((3, 1))).shape == (3, 1)
    assert standard_normal(source, torch.Size((0, 2))).shape == (0, 2)
    assert noised(source, torch.zeros(()), 1.0).shape == ()


@pytest.mark.parametrize("deviation", [1e-3, 1.0, 250.0])
def test_a_noised_sum_is_centered_on_the_sum_and_on_a_coarse_grid(deviation: float) -> None:
    found = noised(OperatingSystemSource(), torch.full((20_000,), 7.0), deviation)
    assert abs(float(found.mean()) - 7.0) < 6 * deviation / math.sqrt(20_000)
    assert float(found.std()) == pytest.approx(deviation, rel=0.04)
    grid = 2.0 ** (math.floor(math.log2(deviation)) - 20)
    assert torch.equal((found / grid).round() * grid, found)


def test_each_is_chosen_with_its_chance_and_independently_of_the_others() -> None:
    source = OperatingSystemSource()
    samples = torch.stack([torch.zeros(50).index_fill(0, choose_each(source, 50, 0.3), 1.0) for _ in range(2000)])
    assert samples.mean().item() == pytest.approx(0.3, abs=0.01)
    sizes = samples.sum(dim=1)
    assert sizes.var().item() == pytest.approx(50 * 0.3 * 0.7, rel=0.2)


def test_certain_and_nobody() -> None:
    source = OperatingSystemSource()
    assert choose_each(source, 5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert choose_each(source, 0, 0.5).tolist() == []
