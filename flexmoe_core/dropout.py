"""Dropout that draws from a given generator; without one there is none, so no training mode is kept."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 1 << 16
"""A rate is kept to one part in so many."""


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout of any shape (``torch.nn.functional.dropout`` can only use the global generator)."""
    if generator is None or rate == 0.0:
        return x
    dropped = min(max(round(rate * LEVELS), 1), LEVELS - 1)
    # Sixteen random bits an element: drawing them four elements at a time is ten times faster than a Bernoulli draw.
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(
        -(2**63), None, generator=generator
    )
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(bits, dropped - LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
    return x * kept.mul_(LEVELS / (LEVELS - dropped))
