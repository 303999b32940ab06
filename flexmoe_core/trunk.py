"""Trunk: pre-norm transformer layers over all tokens of a patient, feed-forward dense or a mixture of experts.

Shapes: B patients, N tokens per patient, D width, A heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from flexmoe_core.chance import Chance
from flexmoe_core.dropout import dropout
from flexmoe_core.losses import RoutingLosses
from flexmoe_core.mixture import ExpertUse, Mixture, RoutingPlan
from flexmoe_core.settings import ModelSettings

MOST_REPEATABLE = 256
"""Tokens whose gradients a GPU adds up in two blocks at most in bfloat16: of three, the order decides the last bits.
"""


class Attention(nn.Module):
    """Multi-head self-attention. Its weights have no dropout: the fused kernel can only use the global generator."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        patients, tokens, width = x_BND.shape
        qkv = self.project_in(x_BND).reshape(patients, tokens, 3, self.heads, width // self.heads)
        q_BANd, k_BANd, v_BANd = qkv.permute(2, 0, 3, 1, 4)
        attended = _attend(q_BANd, k_BANd, v_BANd)
        out: Tensor = self.project_out(attended.transpose(1, 2).reshape(patients, tokens, width))
        return out


def _attend(q_BANd: Tensor, k_BANd: Tensor, v_BANd: Tensor) -> Tensor:
    """The fused product; in float32 at least where the gradient in bfloat16 is slow or differs by chance."""
    if q_BANd.dtype != torch.bfloat16 or (q_BANd.is_cuda and q_BANd.shape[2] <= MOST_REPEATABLE):
        return scaled_dot_product_attention(q_BANd, k_BANd, v_BANd)
    with torch.autocast(q_BANd.device.type, enabled=False):
        return scaled_dot_product_attention(q_BANd.float(), k_BANd.float(), v_BANd.float())


class DenseFeedForward(nn.Module):
    """Two layers, the same for every token."""

    def __init__(self, width: int, hidden: int, rate: float) -> None:
        super().__init__()
        self.expand, self.contract, self.rate = nn.Linear(width, hidden), nn.Linear(hidden, width), rate

    def forward(self, x_BND: Tensor, generator: Chance | None) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        out: Tensor = self.contract(dropout(nn.functional.gelu(self.expand(x_BND)), self.rate, generator))
        return out


class TrunkLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)): the input always passes unchanged."""

    def __init__(
        self, settings: ModelSettings, sparse: bool, generator: torch.Generator, modalities: int = 1
    ) -> None:
        super().__init__()
        self.rate = settings.dropout
        self.attention_norm = nn.LayerNorm(settings.width)
        self.attention = Attention(settings.width, settings.heads)
        self.feed_forward_norm = nn.LayerNorm(settings.width)
        mixed = sparse and settings.routed_experts > 0
        self.mixture = Mixture(settings, generator, modalities) if mixed else None
        hidden = settings.expert_width * (settings.active_experts if sparse else 1)
        self.dense = None if mixed else DenseFeedForward(settings.width, hidden, self.rate)

    def forward(
        self, x_BND: Tensor, plan: RoutingPlan, generator: Chance | None
    ) -> tuple[Tensor, RoutingLosses | None, ExpertUse | None]:
        """(B, N, D) to (B, N, D); losses and use of experts where the layer is sparse."""
        x_BND = x_BND + dropout(self.attention(self.attention_norm(x_BND)), self.rate, generator)
        normed_BND = self.feed_forward_norm(x_BND)
        if self.mixture is None:
            assert self.dense is not None
            return x_BND + dropout(self.dense(normed_BND, generator), self.rate, generator), None, None
        y_BND, losses, use = self.mixture(normed_BND, plan, generator)
        return x_BND + dropout(y_BND, self.rate, generator), losses, use


def is_sparse(layer: int) -> bool:
    """Every second layer is a mixture, starting with the first, as in the paper's several-layer setting."""
    return layer % 2 == 0
