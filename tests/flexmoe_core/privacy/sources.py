"""Randomness that tests know."""

from __future__ import annotations

import torch
from torch import Tensor


class KnownSource:
    """The same bits at every call, whatever was drawn before: what is drawn depends on the number of draws alone."""

    secret = False

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def bits(self, count: int) -> Tensor:
        """Int64 (count,) that everybody can compute."""
        generator = torch.Generator().manual_seed(self._seed)
        return torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=generator)
