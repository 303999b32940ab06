"""Missing-modality bank (Flex-MoE, section 3.2): learned tokens for what a patient's combination lacks.

Shapes: B patients, M modalities, P tokens, D width, F = P*D, S residual rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from flexmoe_core.settings import ModelSettings


class Bank(nn.Module, ABC):
    """(B, M) residual rows of the table and (B, M) bool, who observed what, to tokens (B, M, P, D).

    ``slots`` is the number S of residual rows, each supported by the patients whom ``users`` counts.
    """

    learns: bool
    slots: int

    @abstractmethod
    def forward(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """A token for every modality; those of observed ones mean nothing and get no gradient from the model."""

    @abstractmethod
    def users(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """How many patients use each residual row: (S,) float64."""


class TableBank(Bank):
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

    def forward(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """The default and, where ``slots_BM`` is not negative, that residual row."""
        has_row_BM = slots_BM >= 0
        if self.slots == 0:
            return self.default.expand(len(slots_BM), *self.default.shape)
        residual_BMF: Tensor = embedding(slots_BM.clamp(min=0), self.residual.flatten(1)) * has_row_BM[:, :, None]
        return self.default + residual_BMF.reshape(-1, *self.default.shape)

    def users(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """Patients of each (combination, missing modality)."""
        ones_BM = torch.ones(slots_BM.shape, dtype=torch.float64, device=slots_BM.device)
        # One place more, for those who use none.
        return ones_BM.new_zeros(self.slots + 1).index_add_(0, slots_BM.flatten() + 1, ones_BM.flatten())[1:]


class CompositionalBank(Bank):
    """A default per modality plus the mean, over what the patient observes, of one residual per pair of modalities.

    M + M^2 tokens for any number of combinations, and every combination has its own, trained or not. A mean, so that
    a patient of thirty modalities gets no larger token than one of two, and a combination that nobody trained lies
    between those that somebody did. Row j*M + m stands for observing j and lacking m. All start at zero and
    residuals decay, as in ``TableBank``.
    """

    learns = True

    def __init__(self, modalities: int, tokens: int, width: int) -> None:
        super().__init__()
        self.slots = modalities**2
        self.default = nn.Parameter(torch.zeros(modalities, tokens, width))
        self.residual = nn.Parameter(torch.zeros(self.slots, tokens, width))

    def forward(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """The default and the mean residual, in one matrix product; the default alone for who observes nothing."""
        mean = self.shares(observed_BM) @ self.residual.reshape(observed_BM.shape[1], -1)
        return self.default + mean.reshape(-1, *self.default.shape)

    def shares(self, observed_BM: Tensor) -> Tensor:
        """(B, M): what each observed modality counts in a patient's mean."""
        return observed_BM.to(self.residual.dtype) / observed_BM.sum(dim=1, keepdim=True).clamp(min=1)

    def users(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """Patients who observe the one and lack the other, for each pair."""
        observed_BM = observed_BM.double()
        return (observed_BM.T @ (1 - observed_BM)).flatten()


class ZeroBank(Bank):
    """Zero-fill: the control that a learned bank has to beat."""

    learns = False
    slots = 0

    def __init__(self, modalities: int, tokens: int, width: int) -> None:
        super().__init__()
        self.shape = (modalities, tokens, width)

    def forward(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(len(slots_BM), *self.shape, device=slots_BM.device)

    def users(self, slots_BM: Tensor, observed_BM: Tensor) -> Tensor:
        """Nobody: there is no row."""
        return torch.zeros(0, dtype=torch.float64, device=slots_BM.device)


def build_bank(modalities: int, slots: int, settings: ModelSettings) -> Bank:
    """The bank that the settings name, for a table of so many (combination, missing modality)."""
    match settings.bank:
        case "table":
            return TableBank(modalities, slots, settings.tokens, settings.width)
        case "compositional":
            return CompositionalBank(modalities, settings.tokens, settings.width)
        case "zero":
            return ZeroBank(modalities, settings.tokens, settings.width)
