"""Experts with stacked weights, and the exact dispatch of tokens to them: no token is dropped.

Shapes: T tokens, K experts per token, R = T*K routed tokens, E experts, D width, H expert width, F = E*H.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag, gelu, grouped_mm

from flexmoe_core.chance import Chance
from flexmoe_core.dropout import Lots, draw_lots

FEW = 1 << 18
"""Elements of routed tokens whose hidden layers stay in the caches of a CPU at usual widths."""
MOST_WIDE = 1 << 28
"""Elements of the hidden layers of all experts for all tokens, up to which a GPU computes them all."""


class Listener(Protocol):
    """Told of each layer's inputs and outputs, routed row by row; goes on with what it returns."""

    def __call__(self, layer: int, inputs_RI: Tensor, outputs_RO: Tensor, dispatch: Dispatch) -> Tensor:
        """The outputs of layer 0 (before its nonlinearity) or 1, or a copy of them."""


@dataclass(frozen=True)
class ExpertWeights:
    """Two-layer feed-forward networks, one per expert, and who listens to what they do (None: nobody)."""

    w1_EDH: Tensor
    b1_EH: Tensor
    w2_EHD: Tensor
    b2_ED: Tensor
    listener: Listener | None = None

    def __len__(self) -> int:
        return len(self.w1_EDH)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.w1_EDH, self.b1_EH, self.w2_EHD, self.b2_ED))

    def to(self, dtype: torch.dtype) -> ExpertWeights:
        """The same weights in another precision."""
        return self._with(w.to(dtype) for w in self)

    def detach(self) -> ExpertWeights:
        """The same weights, which will not learn."""
        return self._with(w.detach() for w in self)

    def beside(self, others: ExpertWeights) -> ExpertWeights:
        """These experts, then the others."""
        return self._with(torch.cat(both) for both in zip(self, others, strict=True))

    def _with(self, values: Iterable[Tensor]) -> ExpertWeights:
        w1_EDH, b1_EH, w2_EHD, b2_ED = values
        return ExpertWeights(w1_EDH, b1_EH, w2_EHD, b2_ED, self.listener)


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

    def forward(self) -> ExpertWeights:
        """The weights for a mixture to use. A call, so that a hook may listen to what is done with them."""
        return self.weights()

    def weights(self) -> ExpertWeights:
        """The live weights."""
        return ExpertWeights(self.w1, self.b1, self.w2, self.b2)


def mix(
    x_TD: Tensor,
    chosen_TK: Tensor,
    gates_TK: Tensor,
    weights: ExpertWeights,
    rate: float = 0.0,
    generator: Chance | None = None,
) -> Tensor:
    """Each token's chosen experts (int64), weighted by its gates: (T, D) to (T, D).

    ``rate`` is the dropout of the hidden layer; without a generator there is none.
    """
    dtype = _precision(x_TD)
    if weights.listener is None and prefers_wide(x_TD, weights):
        return _wide(x_TD.to(dtype), chosen_TK, gates_TK.to(dtype), weights.to(dtype), rate, generator)
    dispatch = Dispatch.of(chosen_TK, len(weights))
    # Lookups in place of indexing: no scatter on the way back, and the order of sums is fixed.
    x_RD = embedding(dispatch.token_R, x_TD.to(dtype))
    lots_RH = draw_lots(torch.Size((len(x_RD), weights.b1_EH.shape[1])), rate, generator, x_RD.device)
    if lots_RH is not None and not isinstance(generator, torch.Generator):
        lots_RH = lots_RH.moved(dispatch.row_TK.flatten())  # drawn in the order of the patients
    unheard = _grouped if prefers_grouped(x_RD) else _one_by_one
    feed_forward = unheard if weights.listener is None else _listened
    y_RD = feed_forward(x_RD, lots_RH, weights, dispatch)
    return _combine(y_RD, dispatch.row_TK, gates_TK.to(dtype))


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

    def rows(self) -> list[int]:
        """How many rows each expert has."""
        rows: list[int] = torch.diff(self.ends_E, prepend=self.ends_E.new_zeros(1)).tolist()
        return rows


def _combine(y_RD: Tensor, row_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """Each token's rows, weighted by its gates: (T, D)."""
    if y_RD.is_cuda:  # embedding_bag has no gradient in bfloat16 there
        return (gates_TK[:, None] @ embedding(row_TK, y_RD)).squeeze(1)
    return embedding_bag(row_TK, y_RD, per_sample_weights=gates_TK, mode="sum")


def prefers_wide(x_TD: Tensor, weights: ExpertWeights) -> bool:
    """Whether to compute every expert for every token: a GPU has the time, and no sorting is needed."""
    return x_TD.is_cuda and is_wide(len(x_TD), weights.b1_EH.numel())


def is_wide(tokens: int, hidden_units: int) -> bool:
    """Whether a GPU has the memory for the hidden units of all experts."""
    return tokens * hidden_units <= MOST_WIDE


def prefers_grouped(x_RD: Tensor) -> bool:
    """Whether one call for all experts is faster than one for each: always on a GPU, for few tokens on a CPU.

    ``grouped_mm`` knows neither float64 nor no rows.
    """
    return x_RD.dtype != torch.float64 and len(x_RD) > 0 and (x_RD.is_cuda or x_RD.numel() <= FEW)


def _precision(x: Tensor) -> torch.dtype:
    """Autocast's, where that is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _wide(
    x_TD: Tensor,
    chosen_TK: Tensor,
    gates_TK: Tensor,
    w: ExpertWeights,
    rate: float,
    generator: Chance | None,
) -> Tensor:
    """All experts as one feed-forward network, whose hidden units count by the gates: 0 for who was not chosen."""
    gates_TE = gates_TK.new_zeros(len(x_TD), len(w)).scatter(1, chosen_TK, gates_TK)
    h_TF = gelu(torch.addmm(w.b1_EH.flatten(), x_TD, w.w1_EDH.transpose(0, 1).flatten(1)))
    lots_TF = draw_lots(h_TF.shape, rate, generator, h_TF.device)
    if lots_TF is not None:
        h_TF = h_TF * lots_TF.kept(h_TF.dtype)
    h_TEH = h_TF.unflatten(1, w.b1_EH.shape) * gates_TE[:, :, None]
    return torch.addmm(gates_TE @ w.b2_ED, h_TEH.flatten(1), w.w2_EHD.flatten(0, 1))


def _grouped(x_RD: Tensor, lots_RH: Lots | None, weights: ExpertWeights, dispatch: Dispatch) -> Tensor:
    """Both layers, each as one grouped product."""
    w, every_E = weights.to(x_RD.dtype), torch.arange(len(weights), device=x_RD.device)
    own_RE = (dispatch.expert_R[:, None] == every_E).to(x_RD.dtype)
    # Each row's bias by a product, whose gradient is one as well, and not a scatter.
    h_RH = gelu(grouped_mm(x_RD, w.w1_EDH, offs=dispatch.ends_E).addmm_(own_RE, w.b1_EH))
    if lots_RH is not None:
        h_RH = h_RH * lots_RH.kept(h_RH.dtype)
    return grouped_mm(h_RH, w.w2_EHD, offs=dispatch.ends_E).addmm_(own_RE, w.b2_ED)


def _listened(x_RD: Tensor, lots_RH: Lots | None, weights: ExpertWeights, dispatch: Dispatch) -> Tensor:
    """Both layers, one after the other for all experts, as the listener has to hear of them."""
    listen, w = weights.listener, weights.to(x_RD.dtype)
    assert listen is not None
    h_RH = gelu(listen(0, x_RD, _affine(x_RD, w.w1_EDH, w.b1_EH, dispatch), dispatch))
    if lots_RH is not None:
        h_RH = h_RH * lots_RH.kept(h_RH.dtype)
    return listen(1, h_RH, _affine(h_RH, w.w2_EHD, w.b2_ED, dispatch), dispatch)


def _affine(x_RI: Tensor, w_EIO: Tensor, b_EO: Tensor, dispatch: Dispatch) -> Tensor:
    """Each row's own expert's affine map."""
    if prefers_grouped(x_RI):
        return grouped_mm(x_RI, w_EIO, offs=dispatch.ends_E) + embedding(dispatch.expert_R, b_EO)
    parts = zip(x_RI.split(dispatch.rows()), w_EIO, b_EO, strict=True)
    return torch.cat([torch.addmm(b, x, w) for x, w, b in parts])


def _one_by_one(x_RD: Tensor, lots_RH: Lots | None, weights: ExpertWeights, dispatch: Dispatch) -> Tensor:
    """Both layers, expert by expert: on a CPU the hidden layer of one is still in the cache when it is needed."""
    y, first, w = [], 0, weights.to(x_RD.dtype)
    for x, w1, b1, w2, b2 in zip(x_RD.split(dispatch.rows()), w.w1_EDH, w.b1_EH, w.w2_EHD, w.b2_ED, strict=True):
        h = gelu(torch.addmm(b1, x, w1))
        if lots_RH is not None:
            h = h * lots_RH[first : first + len(h)].kept(h.dtype)
        y.append(torch.addmm(b2, h, w2))
        first += len(h)
    return torch.cat(y)
