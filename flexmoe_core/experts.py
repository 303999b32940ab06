"""Experts with stacked weights, and the exact dispatch of tokens to them: no token is dropped.

Shapes: T tokens, K experts per token, R = T*K routed tokens, E experts, D width, H expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
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
    dispatch = Dispatch.of(chosen_TK, len(weights.w1_EDH))
    x_RD = _to_experts(x_TD, dispatch)
    h_RH = gelu(_affine(x_RD, weights.w1_EDH, weights.b1_EH, dispatch))
    y_RD = _affine(dropout(h_RH, rate, generator), weights.w2_EHD, weights.b2_ED, dispatch)
    y_TKD = _to_tokens(y_RD, dispatch).unflatten(0, chosen_TK.shape)
    return torch.bmm(gates_TK.unsqueeze(1).to(y_TKD.dtype), y_TKD).squeeze(1)


@dataclass(frozen=True)
class Dispatch:
    """Routed tokens sorted by expert.

    Row r belongs to ``expert_R[r]`` and is the routed token ``order_R[r]`` (token * K + choice); ``row_R`` leads
    back. Expert e has the rows up to ``ends_E[e]`` (int32).
    """

    expert_R: Tensor
    order_R: Tensor
    row_R: Tensor
    ends_E: Tensor
    active: int

    @classmethod
    def of(cls, chosen_TK: Tensor, experts: int) -> Dispatch:
        """The dispatch of each token to its chosen experts (int64)."""
        expert_R, order_R = torch.sort(chosen_TK.reshape(-1), stable=True)
        row_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
        ends_E = torch.searchsorted(
            expert_R, torch.arange(experts, device=expert_R.device), right=True, out_int32=True
        )
        return cls(expert_R, order_R, row_R, ends_E, chosen_TK.shape[1])


class _Dispatched(FunctionCtx):
    dispatch: Dispatch


class _ToExperts(Function):
    """(T, D) to (R, D). Its gradient is a gather and a sum over K: the order of sums is fixed on every device."""

    @staticmethod
    def forward(ctx: _Dispatched, x_TD: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return x_TD.index_select(0, dispatch.order_R // dispatch.active)

    @staticmethod
    def backward(ctx: _Dispatched, gradient_RD: Tensor) -> tuple[Tensor, None]:
        by_token_TKD = gradient_RD.index_select(0, ctx.dispatch.row_R).unflatten(0, (-1, ctx.dispatch.active))
        return by_token_TKD.sum(dim=1), None


class _ToTokens(Function):
    """(R, D) by expert to (R, D) by token and choice; its gradient is the inverse gather, not a scatter."""

    @staticmethod
    def forward(ctx: _Dispatched, y_RD: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return y_RD.index_select(0, dispatch.row_R)

    @staticmethod
    def backward(ctx: _Dispatched, gradient_RD: Tensor) -> tuple[Tensor, None]:
        return gradient_RD.index_select(0, ctx.dispatch.order_R), None


_to_experts: Callable[[Tensor, Dispatch], Tensor] = _ToExperts.apply
_to_tokens: Callable[[Tensor, Dispatch], Tensor] = _ToTokens.apply


def _affine(x_RI: Tensor, w_EIO: Tensor, b_EO: Tensor, dispatch: Dispatch) -> Tensor:
    """Rows sorted by expert times that expert's matrix, plus its bias; in autocast's precision where that is on."""
    device = x_RI.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_RI, w_EIO, b_EO = x_RI.to(dtype), w_EIO.to(dtype), b_EO.to(dtype)
    # On a GPU the gradient of index_select adds in no fixed order, that of indexing does.
    b_RO = b_EO[dispatch.expert_R] if b_EO.is_cuda else b_EO.index_select(0, dispatch.expert_R)
    return _per_expert_matmul(x_RI, w_EIO, dispatch.ends_E) + b_RO


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
