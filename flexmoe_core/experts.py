"""Experts with stacked weights, and the exact dispatch of tokens to them: no token is dropped.

Shapes: T tokens, K experts per token, R = T*K routed tokens, E experts, D width, H expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn.functional import gelu, grouped_mm

from flexmoe_core.dropout import Lots, draw_lots

BLOCK = 512
"""Rows whose hidden layer stays in a core's cache at usual widths."""


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
    lots_RH = draw_lots(torch.Size((len(x_RD), weights.b1_EH.shape[1])), rate, generator, x_RD.device)
    y_RD = (_grouped if prefers_grouped(x_RD) else _one_by_one)(x_RD, lots_RH, weights, dispatch)
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


def prefers_grouped(x_RD: Tensor) -> bool:
    """Whether one launch for all experts is faster than a loop; ``grouped_mm`` knows neither float64 nor no rows."""
    return x_RD.is_cuda and x_RD.dtype != torch.float64 and len(x_RD) > 0


def _precision(x: Tensor) -> torch.dtype:
    """Autocast's, where that is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _grouped(x_RD: Tensor, lots_RH: Lots | None, weights: ExpertWeights, dispatch: Dispatch) -> Tensor:
    """Both layers, each as one grouped product."""
    dtype = _precision(x_RD)

    def affine(x_RI: Tensor, w_EIO: Tensor, b_EO: Tensor) -> Tensor:
        return grouped_mm(x_RI.to(dtype), w_EIO.to(dtype), offs=dispatch.ends_E) + b_EO[dispatch.expert_R].to(dtype)

    h_RH = gelu(affine(x_RD, weights.w1_EDH, weights.b1_EH))
    if lots_RH is not None:
        h_RH = h_RH * lots_RH.kept(dtype)
    return affine(h_RH, weights.w2_EHD, weights.b2_ED)


def _one_by_one(x_RD: Tensor, lots_RH: Lots | None, weights: ExpertWeights, dispatch: Dispatch) -> Tensor:
    """Both layers, block by block of one expert's rows.

    On a CPU reading and writing (R, H) costs as much as multiplying it, and a block stays in the cache.
    """
    tensors = (weights.w1_EDH, weights.b1_EH, weights.w2_EHD, weights.b2_ED)
    return _apply_blocks(x_RD.to(_precision(x_RD)), *tensors, lots_RH, _blocks(dispatch))


def _blocks(dispatch: Dispatch) -> list[tuple[int, slice]]:
    """Each expert's rows, ``BLOCK`` at most at a time."""
    bounds = [0, *dispatch.ends_E.tolist()]
    return [
        (e, slice(start, min(start + BLOCK, end)))
        for e, (first, end) in enumerate(pairwise(bounds))
        for start in range(first, end, BLOCK)
    ]


class _InBlocks(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    lots_RH: Lots | None
    blocks: list[tuple[int, slice]]


class _Blocks(Function):
    """Two layers of each expert on its blocks of rows, in the precision of ``x_RD``, with the gradient by hand.

    Of what lies between, only the first layer's output is kept.
    """

    @staticmethod
    def forward(
        ctx: _InBlocks,
        x_RD: Tensor,
        w1_EDH: Tensor,
        b1_EH: Tensor,
        w2_EHD: Tensor,
        b2_ED: Tensor,
        lots_RH: Lots | None,
        blocks: list[tuple[int, slice]],
    ) -> Tensor:
        dtype = x_RD.dtype
        pre_RH, y_RD = x_RD.new_empty(len(x_RD), b1_EH.shape[1]), torch.empty_like(x_RD)
        for e, rows in blocks:
            torch.addmm(b1_EH[e].to(dtype), x_RD[rows], w1_EDH[e].to(dtype), out=pre_RH[rows])
            h = gelu(pre_RH[rows])
            if lots_RH is not None:
                h.mul_(lots_RH[rows].kept(dtype))
            torch.addmm(b2_ED[e].to(dtype), h, w2_EHD[e].to(dtype), out=y_RD[rows])
        ctx.save_for_backward(x_RD, pre_RH, w1_EDH, w2_EHD)
        ctx.lots_RH, ctx.blocks = lots_RH, blocks
        return y_RD

    @staticmethod
    def backward(ctx: _InBlocks, dy_RD: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, pre_RH, w1_EDH, w2_EHD = ctx.saved_tensors
        dtype, learns = x_RD.dtype, any(ctx.needs_input_grad[1:5])
        dx_RD, dw1_EDH, dw2_EHD = torch.empty_like(x_RD), torch.empty_like(w1_EDH), torch.empty_like(w2_EHD)
        idle = sorted(set(range(len(w1_EDH))) - {e for e, _ in ctx.blocks})
        dw1_EDH[idle], dw2_EHD[idle] = 0.0, 0.0
        db1_EH, db2_ED = w1_EDH.new_zeros(dw1_EDH.shape[::2]), w2_EHD.new_zeros(dw2_EHD.shape[::2])
        last = -1
        for e, rows in ctx.blocks:
            dy, kept = dy_RD[rows], None if ctx.lots_RH is None else ctx.lots_RH[rows].kept(dtype)
            dh = dy @ w2_EHD[e].to(dtype).T
            dpre = torch.ops.aten.gelu_backward(dh if kept is None else dh.mul_(kept), pre_RH[rows])
            torch.mm(dpre, w1_EDH[e].to(dtype).T, out=dx_RD[rows])
            if learns:
                h = gelu(pre_RH[rows])
                _add_product(dw2_EHD[e], (h if kept is None else h.mul_(kept)).T, dy, fresh=e != last)
                _add_product(dw1_EDH[e], x_RD[rows].T, dpre, fresh=e != last)
                db2_ED[e] += dy.sum(dim=0)
                db1_EH[e] += dpre.sum(dim=0)
                last = e
        found = (dw1_EDH, db1_EH, dw2_EHD, db2_ED) if learns else (None,) * 4
        return dx_RD, *found, None, None


def _add_product(sum_IO: Tensor, left_IR: Tensor, right_RO: Tensor, fresh: bool) -> None:
    """Add a product in place, or begin the sum with it; the sum may be of higher precision."""
    if sum_IO.dtype == left_IR.dtype:
        sum_IO.addmm_(left_IR, right_RO, beta=0 if fresh else 1)
    elif fresh:
        sum_IO.copy_(left_IR @ right_RO)
    else:
        sum_IO.add_(left_IR @ right_RO)


_apply_blocks: Callable[..., Tensor] = _Blocks.apply
