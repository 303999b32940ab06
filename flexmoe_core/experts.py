"""Experts with stacked weights, and the exact dispatch of tokens to them: no token is dropped.

Shapes: T tokens, K experts per token, R = T*K routed tokens, E experts, D width, H expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, grouped_mm

from flexmoe_core.dropout import dropout


@dataclass(frozen=True)
class ExpertWeights:
    """Two-layer feed-forward networks, one per expert."""

    w1_EDH: Tensor
    b1_EH: Tensor
    w2_EHD: Tensor
    b2_ED: Tensor

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
    experts = len(weights.w1_EDH)
    tokens, active = chosen_TK.shape
    expert_R, order_R = torch.sort(chosen_TK.reshape(-1), stable=True)
    ends_E = torch.bincount(expert_R, minlength=experts).cumsum(0).to(torch.int32)
    x_RD = x_TD[order_R // active]
    h_RH = gelu(_per_expert_matmul(x_RD, weights.w1_EDH, ends_E) + weights.b1_EH[expert_R])
    y_RD = _per_expert_matmul(dropout(h_RH, rate, generator), weights.w2_EHD, ends_E) + weights.b2_ED[expert_R]
    # Undoing the sort by its inverse, not by scatter-add, keeps the sum's order fixed on every device.
    y_TKD = y_RD[torch.argsort(order_R)].reshape(tokens, active, x_TD.shape[1])
    return (y_TKD * gates_TK.unsqueeze(-1).to(y_TKD.dtype)).sum(dim=1)


def _per_expert_matmul(x_RI: Tensor, w_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """Rows sorted by expert times that expert's matrix."""
    if x_RI.dtype == torch.float64 or len(x_RI) == 0:
        return _loop_matmul(x_RI, w_EIO, ends_E)
    return grouped_mm(x_RI.contiguous(), w_EIO, offs=ends_E)


def _loop_matmul(x_RI: Tensor, w_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """One product per expert: for float64, which ``grouped_mm`` refuses, and for no rows at all."""
    bounds = [0, *ends_E.tolist()]
    parts = [x_RI[bounds[e] : bounds[e + 1]] @ w_EIO[e] for e in range(len(w_EIO))]
    return torch.cat(parts)
