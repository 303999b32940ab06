"""Generators derived from names, so that the same seed gives the same result wherever a site runs.

Only for what is not a secret: DP noise, keys and masks never come from here.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on the run's seed and every name, in order."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: str | int, device: torch.device | None = None) -> torch.Generator:
    """A torch generator for (seed, names); dropout and gate noise need it on the model's device."""
    return torch.Generator(device=device or torch.device("cpu")).manual_seed(derived_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for (seed, names)."""
    return np.random.default_rng(derived_seed(seed, *names))
