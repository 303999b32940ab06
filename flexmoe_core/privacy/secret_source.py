"""Randomness that nobody can reproduce: noise and samples of differential privacy.

A seeded generator would let anybody who knows the seed subtract the noise; torch's CPU generator has 32 bits of seed.
So bits come from ChaCha20 (RFC 8439) under a key from the operating system that is never stored.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

UNIT = 2.0**-53


class SecretSource(Protocol):
    """Where secret randomness comes from; ``secret`` is false for what a test injects, which somebody may know."""

    secret: bool

    def bits(self, count: int) -> Tensor:
        """Uniform int64 (count,), all 64 bits of chance, on the CPU."""


class OperatingSystemSource:
    """A ChaCha20 stream under a fresh key of the operating system's."""

    secret = True

    def __init__(self) -> None:
        self._stream = Cipher(ChaCha20(os.urandom(32), bytes(16)), mode=None).encryptor()

    def bits(self, count: int) -> Tensor:
        """Uniform int64 (count,)."""
        if count == 0:
            return torch.empty(0, dtype=torch.int64)
        return torch.frombuffer(bytearray(self._stream.update(bytes(8 * count))), dtype=torch.int64)


def uniform(source: SecretSource, count: int) -> Tensor:
    """Float64 (count,) in (0, 1], multiples of 2**-53."""
    return source.bits(count).bitwise_right_shift_(11).add_(2**52 + 1).double().mul_(UNIT)


def standard_normal(source: SecretSource, shape: torch.Size) -> Tensor:
    """Float64 of that shape, on the CPU (Box and Muller 1958).

    Floating-point noise has gaps that can give an addend away (Mironov 2012): round the sum to a grid far coarser
    than float64, as ``noised`` does.
    """
    count = shape.numel()
    pairs = -(-count // 2)
    radius = uniform(source, pairs).log_().mul_(-2.0).sqrt_()
    angle = uniform(source, pairs).mul_(2.0 * math.pi)
    both = torch.empty(2, pairs, dtype=torch.float64)
    torch.cos(angle, out=both[0])
    torch.sin(angle, out=both[1])
    return both.mul_(radius).flatten()[:count].reshape(shape)


def noised(source: SecretSource, total: Tensor, deviation: float) -> Tensor:
    """The sum with Gaussian noise of that standard deviation, on a grid of about a millionth of it: float64, CPU.

    Each point of the grid is reached from millions of float64 values whatever the sum was, so the gaps of floating
    point say nothing about it.
    """
    grid = 2.0 ** (math.floor(math.log2(deviation)) - 20)
    noisy = standard_normal(source, total.shape).mul_(deviation).add_(total.detach().cpu())
    return noisy.div_(grid).round_().mul_(grid)


def choose_each(source: SecretSource, count: int, chance: float) -> Tensor:
    """Positions (int64) among ``count``, each chosen independently with that chance: a Poisson sample."""
    return (uniform(source, count) <= chance).nonzero().squeeze(1)
