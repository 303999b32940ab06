"""Missing-modality bank (Flex-MoE, section 3.2): learned tokens for what a patient's combination lacks.

Shapes: B patients, M modalities, P tokens, D width, S residual rows (combination of the table, missing modality).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TableBank(nn.Module):
    """A default per modality, learned from everybody who lacks it, plus a residual per table row.

    All start at zero: a token that nobody trained says nothing. Residuals decay (see ``training``), so that a row
    that few patients use stays near the default instead of memorizing them.
    """

    learns = True

    def __init__(self, modalities: int, slots: int, tokens: int, width: int) -> None:
        super().__init__()
        self.slots = slots
        self.default = nn.Parameter(torch.zeros(modalities, tokens, width))
        self.residual = nn.Parameter(torch.zeros(slots, tokens, width))

    def forward(self, slots_BM: Tensor) -> Tensor:
        """(B, M) residual rows, negative for the default alone, to (B, M, P, D)."""
        has_row_BM = slots_BM >= 0
        if self.slots == 0:
            return self.default.expand(len(slots_BM), *self.default.shape)
        residual_BMPD = self.residual[slots_BM.clamp(min=0)] * has_row_BM[:, :, None, None]
        return self.default + residual_BMPD


class ZeroBank(nn.Module):
    """Zero-fill: the control that a learned bank has to beat."""

    learns = False

    def __init__(self, modalities: int, tokens: int, width: int) -> None:
        super().__init__()
        self.slots, self.shape = 0, (modalities, tokens, width)

    def forward(self, slots_BM: Tensor) -> Tensor:
        """(B, M) residual rows, ignored, to zeros (B, M, P, D)."""
        return torch.zeros(len(slots_BM), *self.shape, device=slots_BM.device)
