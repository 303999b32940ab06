"""Shamir's secret sharing (1979) of 256-bit secrets: any ``threshold`` shares give the secret, fewer say nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

PRIME: Final = 2**256 + 297
"""The smallest prime above every 256-bit secret."""
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33


def split(secret: bytes, threshold: int, indices: Sequence[int]) -> dict[int, bytes]:
    """Shares of 33 bytes by index (1, 2, ...), from a fresh polynomial of the operating system's randomness.

    Raises ValueError for a secret of another length, an index that is zero or comes twice, or too few indices.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")
    if len(set(indices)) != len(indices) or min(indices, default=0) < 1 or not 1 <= threshold <= len(indices):
        raise ValueError("shares need as many distinct positive indices as the threshold, or more")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {index: evaluate(coefficients, index).to_bytes(SHARE_BYTES, "big") for index in indices}


def evaluate(coefficients: Sequence[int], point: int, prime: int = PRIME) -> int:
    """The polynomial with these coefficients, constant one first, at a point."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of exactly ``threshold`` shares by index; something else of others.

    Raises ValueError where shares are no numbers of the field, or what they give is no secret.
    """
    points = {index: int.from_bytes(share, "big") for index, share in shares.items()}
    if any(value >= PRIME for value in points.values()):
        raise ValueError("a share is outside the field")
    secret = interpolate_at_zero(points)
    if secret >= 1 << 8 * SECRET_BYTES:
        raise ValueError("the shares are not those of a secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def interpolate_at_zero(points: Mapping[int, int], prime: int = PRIME) -> int:
    """The value at zero of the polynomial of lowest degree through the points (Lagrange)."""
    total = 0
    for index, value in points.items():
        above, below = 1, 1
        for other in points:
            if other != index:
                above, below = above * other % prime, below * (other - index) % prime
        total += value * above * pow(below, -1, prime)
    return total % prime
