"""Dropout that draws from given chance; without there is none, so no training mode is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexmoe_core.chance import Chance, random_integers


@dataclass(frozen=True)
class Lots:
    """A random integer for each element of a tensor, one of ``levels``; the ``dropped`` lowest mean to drop it."""

    bits: Tensor
    dropped: int
    levels: int

    def __getitem__(self, rows: slice) -> Lots:
        """The lots of some rows."""
        return Lots(self.bits[rows], self.dropped, self.levels)

    def moved(self, place_R: Tensor) -> Lots:
        """The same lots, each row at its new place."""
        return Lots(torch.empty_like(self.bits).index_copy_(0, place_R, self.bits), self.dropped, self.levels)

    def kept(self, dtype: torch.dtype) -> Tensor:
        """What to multiply with: 0 for the dropped, 1 / (1 - rate) for the others."""
        kept = torch.empty(self.bits.shape, dtype=dtype, device=self.bits.device)
        torch.ge(self.bits, self.dropped - self.levels // 2, out=kept)
        return kept.mul_(self.levels / (self.levels - self.dropped))


def draw_lots(shape: torch.Size, rate: float, generator: Chance | None, device: torch.device) -> Lots | None:
    """Lots for inverted dropout of a tensor of that shape; None for no dropout."""
    if generator is None or rate == 0.0:
        return None
    # A byte of chance for an element where it can tell the rate; two keep any rate to one part in 65,536.
    size, dtype = (1, torch.int8) if (rate * 256).is_integer() else (2, torch.int16)
    levels = 256**size
    return Lots(
        random_integers(generator, shape, dtype, device), min(max(round(rate * levels), 1), levels - 1), levels
    )


def dropout(x: Tensor, rate: float, generator: Chance | None) -> Tensor:
    """Inverted dropout of any shape (``torch.nn.functional.dropout`` can only use the global generator)."""
    lots = draw_lots(x.shape, rate, generator, x.device)
    return x if lots is None else x * lots.kept(x.dtype)
