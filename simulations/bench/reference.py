"""The yardstick: Flex-MoE written plainly, as its published code does on a CPU.

One encoder per modality in turn, one attention product per line, one expert after the other, and a bank with a row
for each of the 2^M - 1 combinations. Written from the paper (Flex-MoE, section 3) for timing only: nothing else uses
it, and it says nothing of quality.

Shapes: B patients, M modalities, P tokens per modality, N = M*P tokens, D width, T = B*N tokens, E experts, K experts
per token, S tokens of one expert, H expert width, Y classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from flexmoe_core.cohort import Cohort
from flexmoe_core.settings import ModelSettings


class ReferenceFlexMoe(nn.Module):
    """All parts in one place; ``features`` are the widths of the modalities' inputs, in order."""

    def __init__(self, features: Sequence[int], classes: int, settings: ModelSettings) -> None:
        super().__init__()
        modalities, tokens, width = len(features), settings.tokens, settings.width
        self.tokens = tokens
        self.encoders = nn.ModuleList(_encoder(count, settings) for count in features)
        self.bank = nn.Parameter(torch.randn(2**modalities - 1, modalities, tokens, width) * 0.02)
        self.position = nn.Parameter(torch.zeros(modalities * tokens, width))
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = ReferenceAttention(width, settings.heads, settings.dropout)
        self.experts = ReferenceExperts(settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(modalities * width, classes)

    def forward(self, cohort: Cohort, masks_B: Tensor, expert_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, Y) and the losses of routing; ``expert_B`` is the expert of each patient's combination."""
        x_BND = self._embed(cohort, masks_B)
        x_BND = x_BND + self.dropout(self.attention(self.attention_norm(x_BND)))
        patients, tokens, width = x_BND.shape
        expert_T = expert_B.repeat_interleave(tokens)
        y_TD, routing = self.experts(self.feed_forward_norm(x_BND).reshape(-1, width), expert_T)
        x_BND = x_BND + self.dropout(y_TD.reshape(x_BND.shape))
        pooled_BMD = x_BND.reshape(patients, -1, self.tokens, width).mean(dim=2)
        return self.head(pooled_BMD.flatten(1)), routing

    def _embed(self, cohort: Cohort, masks_B: Tensor) -> Tensor:
        embedded = []
        for m, (name, encoder) in enumerate(zip(cohort.inputs, self.encoders, strict=True)):
            has_B = cohort.observed_BM[:, m]
            tokens_BPD = torch.zeros(len(has_B), *self.bank.shape[2:], device=has_B.device)
            tokens_BPD[~has_B] = self.bank[masks_B[~has_B] - 1, m]
            if has_B.any():
                encoded = encoder(cohort.inputs[name][has_B]).reshape(-1, *self.bank.shape[2:])
                tokens_BPD[has_B] = encoded.to(tokens_BPD.dtype)
            embedded.append(tokens_BPD)
        return torch.cat(embedded, dim=1) + self.position


class ReferenceAttention(nn.Module):
    """Multi-head self-attention, written out."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.dropout = nn.Dropout(rate)
        self.out = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        patients, tokens, width = x_BND.shape
        split = (patients, tokens, 3, self.heads, width // self.heads)
        query, key, value = self.query_key_value(x_BND).reshape(split).permute(2, 0, 3, 1, 4)
        weight = self.dropout((query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1))
        out: Tensor = self.out((weight @ value).transpose(1, 2).reshape(patients, tokens, width))
        return out


class ReferenceExperts(nn.Module):
    """Noisy top-K gating (Shazeer et al. 2017), then a loop over the experts."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.active = settings.active_experts
        self.gate = nn.Parameter(torch.randn(settings.width, settings.experts) * settings.width**-0.5)
        self.noise = nn.Parameter(torch.zeros(settings.width, settings.experts))
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(settings.width, settings.expert_width),
                nn.GELU(),
                nn.Dropout(settings.dropout),
                nn.Linear(settings.expert_width, settings.width),
            )
            for _ in range(settings.experts)
        )

    def forward(self, x_TD: Tensor, expert_T: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) to (T, D), and the sum of balance and specialization losses."""
        clean_TE = x_TD @ self.gate
        noise_TE = softplus(x_TD @ self.noise) + 1e-2
        noisy_TE = clean_TE + torch.randn_like(clean_TE) * noise_TE
        highest_TK, place_TK = noisy_TE.topk(self.active + 1, dim=1)
        gates_TK, chosen_TK = highest_TK[:, : self.active].softmax(dim=1), place_TK[:, : self.active]
        gates_TE = torch.zeros_like(clean_TE).scatter(1, chosen_TK, gates_TK.to(clean_TE.dtype))
        y_TD = torch.zeros_like(x_TD)
        for e, expert in enumerate(self.experts):
            token_S, choice_S = (chosen_TK == e).nonzero(as_tuple=True)
            if len(token_S):
                y_SD = expert(x_TD[token_S]) * gates_TK[token_S, choice_S].unsqueeze(1)
                y_TD = y_TD.index_add(0, token_S, y_SD.to(y_TD.dtype))
        threshold_T1, runner_up_T1 = highest_TK[:, -1:], highest_TK[:, -2:-1]
        limit_TE = torch.where(noisy_TE > threshold_T1, threshold_T1, runner_up_T1)
        load_E = torch.special.ndtr(((clean_TE - limit_TE) / noise_TE).float()).sum(dim=0)
        balance = _variation(gates_TE.float().sum(dim=0)) + _variation(load_E)
        return y_TD, 0.01 * (balance + cross_entropy(clean_TE, expert_T))


def _encoder(features: int, settings: ModelSettings) -> nn.Module:
    """The same layers as those of a table's encoder."""
    out = settings.tokens * settings.width
    if settings.encoder_hidden == 0:
        return nn.Linear(features, out)
    return nn.Sequential(
        nn.Linear(features, settings.encoder_hidden), nn.GELU(), nn.Linear(settings.encoder_hidden, out)
    )


def _variation(value_E: Tensor) -> Tensor:
    return value_E.var() / (value_E.mean() ** 2 + 1e-10)
