"""Dropout that draws from a given generator; without one there is none, so no training mode is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 1 << 16
"""A rate is kept to one part in so many."""


@dataclass(frozen=True)
class Lots:
    """Sixteen random bits for each element of a tensor; those of the ``dropped`` lowest of ``LEVELS`` are dropped."""

    bits: Tensor
    dropped: int

    def __getitem__(self, rows: slice) -> Lots:
        """The lots of some rows."""
        return Lots(self.bits[rows], self.dropped)

    def kept(self, dtype: torch.dtype) -> Tensor:
        """What to multiply with: 0 for the dropped, 1 / (1 - rate) for the others."""
        kept = torch.empty(self.bits.shape, dtype=dtype, device=self.bits.device)
        torch.ge(self.bits, self.dropped - LEVELS // 2, out=kept)
        return kept.mul_(LEVELS / (LEVELS - self.dropped))


def draw_lots(shape: torch.Size, rate: float, generator: torch.Generator | None, device: torch.device) -> Lots | None:
    """Lots for inverted dropout of a tensor of that shape; None for no dropout."""
    if generator is None or rate == 0.0:
        return None
    # Four elements a word: on a CPU many times faster than a Bernoulli draw for each.
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: shape.numel()].view(shape)
    return Lots(bits, min(max(round(rate * LEVELS), 1), LEVELS - 1))


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout of any shape (``torch.nn.functional.dropout`` can only use the global generator)."""
    lots = draw_lots(x.shape, rate, generator, x.device)
    return x if lots is None else x * lots.kept(x.dtype)
