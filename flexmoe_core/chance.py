"""Where the chance inside a model comes from: one generator for all, or for every patient chance of his own.

Shapes: B patients, T tokens (those of a patient in a row), E experts.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class PatientChance(Protocol):
    """Chance for a batch of so many patients, of which no patient's depends on who else is there."""

    patients: int

    def words(self, count: int) -> Tensor:
        """Uniform int64 (patients, count), all 64 bits of chance, on the CPU; new ones at every call."""


Chance = torch.Generator | PatientChance
"""What dropout and gate noise draw from; a generator is on the model's device."""


def random_integers(chance: Chance, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uniform over all values of an integer type. Chance of patients needs rows in the order of the patients."""
    if isinstance(chance, torch.Generator):
        # Many elements a word: on a CPU many times faster than a draw for each.
        words = torch.empty(-(-shape.numel() * dtype.itemsize // 8), dtype=torch.int64, device=device)
        return words.random_(-(2**63), None, generator=chance).view(dtype)[: shape.numel()].view(shape)
    each = shape.numel() // max(chance.patients, 1)
    own_BW = chance.words(-(-each * dtype.itemsize // 8)).to(device)
    return own_BW.view(dtype)[:, :each].reshape(shape)


def normal_like(chance: Chance, x_TE: Tensor) -> Tensor:
    """Standard normal numbers of that shape, for the noise of gates: far too coarse to protect anybody's privacy."""
    if isinstance(chance, torch.Generator):
        return torch.empty_like(x_TE).normal_(generator=chance)
    both_TE2 = random_integers(chance, torch.Size((*x_TE.shape, 2)), torch.int32, x_TE.device).to(x_TE.dtype)
    radius_TE, angle_TE = ((both_TE2 + (2.0**31 + 0.5)) * 2.0**-32).unbind(dim=2)
    return (-2.0 * radius_TE.log()).clamp_(min=0.0).sqrt_() * (2.0 * math.pi * angle_TE).cos_()
