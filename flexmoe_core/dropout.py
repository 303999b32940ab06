"""Dropout that draws from a given generator; without one there is none, so no training mode is kept."""

from __future__ import annotations

import torch
from torch import Tensor


def dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout of any shape (``torch.nn.functional.dropout`` can only use the global generator)."""
    if generator is None or rate == 0.0:
        return x
    kept = torch.empty_like(x).bernoulli_(1.0 - rate, generator=generator)
    return x * kept / (1.0 - rate)
