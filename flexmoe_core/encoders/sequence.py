"""Sequence encoder: steps at irregular times to P tokens.

Shapes: B patients, T steps, C channels of a step, H hidden width, P tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flexmoe_core.chance import Chance
from flexmoe_core.dropout import dropout
from flexmoe_core.modalities.sequence import PRESENT
from flexmoe_core.settings import ModelSettings


class GatedRecurrence(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) over the steps of all patients at once.

    Of linear layers, not ``torch.nn.GRU``: as fast on a CPU, and gradients of single patients can be taken by
    ``torch.func.vmap``. What it keeps starts with memories of 1 to ``longest`` steps (Tallec & Ollivier 2018).
    """

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 3 * width)
        self.recur = nn.Linear(width, 3 * width)
        self.keep = nn.Parameter(torch.linspace(0.0, math.log(longest), width))

    def forward(self, x_BTH: Tensor) -> Tensor:
        """(B, T, H) to the state after each step; padding must come last."""
        state_BH = x_BTH.new_zeros(len(x_BTH), x_BTH.shape[2])
        states = []
        for entering in self.enter(x_BTH).unbind(dim=1):
            reset_BH, kept_BH, new_BH = entering.chunk(3, dim=1)
            old_reset_BH, old_kept_BH, old_BH = self.recur(state_BH).chunk(3, dim=1)
            new_BH = torch.tanh(new_BH + torch.sigmoid(reset_BH + old_reset_BH) * old_BH)
            state_BH = new_BH + torch.sigmoid(kept_BH + old_kept_BH + self.keep) * (state_BH - new_BH)
            states.append(state_BH)
        return torch.stack(states, dim=1)


class SequenceEncoder(nn.Module):
    """Each step and what came before it, then for each token a mean over the steps, weighted by a learned query.

    The step's own projection bypasses the recurrence: a mean of linear functions of the rows is always within reach.
    """

    def __init__(self, longest: int, channels: int, tokens: int, width: int, hidden: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.step = nn.Linear(channels, hidden)
        self.recurrence = GatedRecurrence(hidden, longest)
        self.query = nn.Linear(hidden, tokens, bias=False)
        self.projection = nn.Linear(hidden, width)

    def forward(self, x_BTC: Tensor, generator: Chance | None) -> Tensor:
        """(B, T, C) float32, padded at the end, to (B, P, D). Padding is never read; B may be 0."""
        present_BT1 = x_BTC[..., PRESENT, None] == 1
        step_BTH = self.step(x_BTC.masked_fill(~present_BT1, 0.0))
        step_BTH = dropout(step_BTH + self.recurrence(step_BTH), self.rate, generator)
        fit_BTP = self.query(step_BTH) * step_BTH.shape[2] ** -0.5
        # Not minus infinity: a patient without any step would get NaN.
        share_BTP = fit_BTP.masked_fill(~present_BT1, torch.finfo(fit_BTP.dtype).min).softmax(dim=1)
        pooled_BPH = share_BTP.masked_fill(~present_BT1, 0.0).transpose(1, 2) @ step_BTH
        tokens_BPD: Tensor = self.projection(pooled_BPH)
        return tokens_BPD


def build_sequence(shape: tuple[int, ...], settings: ModelSettings) -> SequenceEncoder:
    """The encoder of inputs (B, T, C)."""
    longest, channels = shape
    hidden = settings.encoder_hidden or settings.width
    return SequenceEncoder(longest, channels, settings.tokens, settings.width, hidden, settings.encoder_dropout)
