"""Pooling: what the head sees of a patient's tokens.

Shapes: B patients, M modalities, P tokens per modality, N = M*P tokens, D width, A heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexmoe_core.settings import ModelSettings


class ConcatPooling(nn.Module):
    """The mean token of each modality, side by side (Flex-MoE): the head knows the modalities one by one."""

    def __init__(self, modalities: int, width: int) -> None:
        super().__init__()
        self.modalities, self.out_width = modalities, modalities * width

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, M*D)."""
        patients, tokens, width = x_BND.shape
        by_modality = (patients, self.modalities, tokens // self.modalities, width)
        return x_BND.reshape(by_modality).mean(dim=2).flatten(1)


class AttentionPooling(nn.Module):
    """A mean over all tokens, weighted by a learned query; each head weighs its own part of the width.

    As wide for two modalities as for thirty. Pooling by attention of one learned query (Lee et al. 2019, arXiv
    1810.00825), with no projections: key and query weights would only multiply, and the head projects what comes out.
    It starts as the plain mean.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.out_width = width
        self.query = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, D)."""
        heads, width = self.query.shape[-2:]
        share_BAN = (self.query @ x_BND.transpose(1, 2) * width**-0.5).softmax(dim=2)
        x_BANd = x_BND.unflatten(2, (heads, -1)).transpose(1, 2)
        pooled_BD: Tensor = (share_BAN[:, :, None] @ x_BANd).flatten(1)
        return pooled_BD


def build_pooling(modalities: int, settings: ModelSettings) -> ConcatPooling | AttentionPooling:
    """The pooling that the settings name."""
    if settings.pooling == "attention":
        return AttentionPooling(settings.width, settings.heads)
    return ConcatPooling(modalities, settings.width)
