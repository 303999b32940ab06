"""Experts with stacked weights, and the exact dispatch of tokens to them: no token is dropped.

Shapes: T tokens, K experts per token, R = T*K routed tokens, E experts, D width, H expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag, gelu, grouped_mm

from flexmoe_core.dropout import Lots, draw_lots

FEW = 1 << 18
"""Elements of routed tokens whose hidden layers stay in the caches of a CPU at usual widths."""


@dataclass(frozen=True)
class ExpertWeights:
    """Two-layer feed-forward networks, one per expert."""

    w1_EDH: Tensor
    b1_EH: Tensor
    w2_EHD: Tensor
    b2_ED: Tensor

    def to(self, dtype: torch.dtype) -> ExpertWeights:
        """The same weights in another precision."""
        return ExpertWeights(*(w.to(dtype) for w in (self.w1_EDH, self.b1_EH, self.w2_EHD, self.b2_ED)))

    def detach(self) -> ExpertWeights:
        """The same weights, which will not learn."""
        return ExpertWeights(self.w1_EDH.detach(), self.b1_EH.detach(), self.w2_EHD.detach(), self.b2_ED.detach())


class Experts(nn.Module):
    """The parameters of E experts; the leading dimension is the expert, also on the wire."""

    def __init__(
        self, experts: int, width: int, expert_width: int, generator: torch.Generator, output_scale: float = 1.0
    ) -> None:
        super().__init__()

        def uniform(*shape: int, bound: float) -> nn.Parameter:
            return nn.Parameter((torch.rand(*shape, generator=generator) * 2 - 1) * bound)

        self.w1 = uniform(experts, width, expert_width, bound=width**-0.5)
        self.b1 = nn.Parameter(torch.zeros(experts, expert_width))
        self.w2 = uniform(experts, expert_width, width, bound=output_scale * expert_width**-0.5)
        self.b2 = nn.Parameter(torch.zeros(experts, width))

    def weights(self) -> ExpertWeights:
        """The live weights."""
        return ExpertWeights(self.w1, self.b1, self.w2, self.b2)


def mix(
    x_TD: Tensor,
    chosen_TK: Tensor,
    gates_TK: Tensor,
    weights: ExpertWeights,
    rate: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Each token's chosen experts (int64), weighted by its gates: (T, D) to (T, D).

    ``rate`` is the dropout of the hidden layer; without a generator there is none.
    """
    dispatch, dtype = Dispatch.of(chosen_TK, len(weights.w1_EDH)), _precision(x_TD)
    # Lookups in place of indexing: no scatter on the way back, and the order of sums is fixed.
    x_RD = embedding(dispatch.token_R, x_TD.to(dtype))
    lots_RH = draw_lots(torch.Size((len(x_RD), weights.b1_EH.shape[1])), rate, generator, x_RD.device)
    feed_forward = _grouped if prefers_grouped(x_RD) else _one_by_one
    y_RD = feed_forward(x_RD, lots_RH, weights, dispatch)
    return embedding_bag(dispatch.row_TK, y_RD, per_sample_weights=gates_TK.to(dtype), mode="sum")


@dataclass(frozen=True)
class Dispatch:
    """Routed tokens sorted by expert.

    Row r is token ``token_R[r]`` at expert ``expert_R[r]``, and ``row_TK`` leads back. Expert e has the rows up to
    ``ends_E[e]`` (int32).
    """

    expert_R: Tensor
    token_R: Tensor
    row_TK: Tensor
    ends_E: Tensor

    @classmethod
    def of(cls, chosen_TK: Tensor, experts: int) -> Dispatch:
        """The dispatch of each token to its chosen experts (int64)."""
        expert_R, order_R = torch.sort(chosen_TK.reshape(-1), stable=True)
        row_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
        every_E = torch.arange(experts, device=expert_R.device)
        ends_E = torch.searchsorted(expert_R, every_E, right=True, out_int32=True)
        return cls(expert_R, order_R // chosen_TK.shape[1], row_R.reshape(chosen_TK.shape), ends_E)


def prefers_grouped(x_RD: Tensor) -> bool:
    """Whether one call for all experts is faster than one for each: always on a GPU, for few tokens on a CPU.

    ``grouped_mm`` knows neither float64 nor no rows.
    """
    return x_RD.dtype != torch.float64 and len(x_RD) > 0 and (x_RD.is_cuda or x_RD.numel() <= FEW)


def _precision(x: Tensor) -> torch.dtype:
    """Autocast's, where that is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _grouped(x_RD: Tensor, lots_RH: Lots | None, weights: ExpertWeights, dispatch: Dispatch) -> Tensor:
    """Both layers, each as one grouped product."""
    w, every_E = weights.to(x_RD.dtype), torch.arange(len(weights.w1_EDH), device=x_RD.device)
    own_RE = (dispatch.expert_R[:, None] == every_E).to(x_RD.dtype)
    # Each row's bias by a product, whose gradient is one as well, and not a scatter.
    h_RH = gelu(grouped_mm(x_RD, w.w1_EDH, offs=dispatch.ends_E).addmm_(own_RE, w.b1_EH))
    if lots_RH is not None:
        h_RH = h_RH * lots_RH.kept(h_RH.dtype)
    return grouped_mm(h_RH, w.w2_EHD, offs=dispatch.ends_E).addmm_(own_RE, w.b2_ED)


def _one_by_one(x_RD: Tensor, lots_RH: Lots | None, weights: ExpertWeights, dispatch: Dispatch) -> Tensor:
    """Both layers, expert by expert: on a CPU the hidden layer of one is still in the cache when it is needed."""
    rows = torch.diff(dispatch.ends_E, prepend=dispatch.ends_E.new_zeros(1)).tolist()
    y, first, w = [], 0, weights.to(x_RD.dtype)
    for x, w1, b1, w2, b2 in zip(x_RD.split(rows), w.w1_EDH, w.b1_EH, w.w2_EHD, w.b2_ED, strict=True):
        h = gelu(torch.addmm(b1, x, w1))
        if lots_RH is not None:
            h = h * lots_RH[first : first + len(h)].kept(h.dtype)
        y.append(torch.addmm(b2, h, w2))
        first += len(h)
    return torch.cat(y)
