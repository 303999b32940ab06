"""The gradients of every patient of a batch, kept as what they are made of, and only multiplied out as a sum.

Book-keeping (Bu et al. 2022, arXiv 2210.00038): one forward and one backward pass leave each layer's inputs and the
gradients of its outputs; from these come every patient's norm and then the clipped sum, one product for each layer.

Shapes: B patients, T rows of a patient, R rows of all, E experts, G = E*B groups, I inputs, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from flexmoe_core.experts import prefers_grouped
from flexmoe_core.privacy.outer_products import squared_norms

SHORTEST = 8
"""Rows to which the shortest groups are filled up; longer ones to the next of lengths that grow by a quarter."""


class PatientGradients(ABC):
    """Each patient's gradient of some parameters."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """(B,) over all of the parameters."""

    @abstractmethod
    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """The sum over patients, each with a weight, by the parameters' names."""

    def without_overflow(self) -> Self:
        """The same with zeros for what is infinite or not a number: times a weight of zero, it would spoil a sum."""
        assert is_dataclass(self)
        return replace(self, **{one.name: _finite(getattr(self, one.name)) for one in fields(self)})


@dataclass(frozen=True)
class Whole(PatientGradients):
    """Gradients that are there in full: (B, ...) by name, for parameters so small that it costs nothing."""

    values: dict[str, Tensor]

    def squared_norms(self) -> Tensor:
        """(B,)."""
        return torch.stack([value.flatten(1).square().sum(dim=1) for value in self.values.values()]).sum(dim=0)

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """One product for each parameter."""
        return {name: (weight_B @ value.flatten(1)).reshape(value.shape[1:]) for name, value in self.values.items()}


@dataclass(frozen=True)
class AffineNames:
    """An affine layer's parameters; None for what does not learn. ``transposed``: the weight is kept as (O, I)."""

    weight: str | None
    bias: str | None
    transposed: bool = False


@dataclass(frozen=True)
class Affine(PatientGradients):
    """Of a layer that each patient's rows pass through, those of several calls side by side."""

    names: AffineNames
    inputs_BTI: Tensor
    gradients_BTO: Tensor

    def squared_norms(self) -> Tensor:
        """(B,)."""
        weight, bias = self.names.weight is not None, self.names.bias is not None
        return squared_norms(self.inputs_BTI, self.gradients_BTO, weight, bias)

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """One product."""
        found, gradients_RO = {}, (self.gradients_BTO * weight_B[:, None, None]).flatten(0, 1)
        if self.names.weight is not None:
            inputs_RI = self.inputs_BTI.flatten(0, 1)
            transposed = self.names.transposed
            found[self.names.weight] = gradients_RO.T @ inputs_RI if transposed else inputs_RI.T @ gradients_RO
        if self.names.bias is not None:
            found[self.names.bias] = gradients_RO.sum(dim=0)
        return found


@dataclass(frozen=True)
class Lookup(PatientGradients):
    """Of a table whose row ``slots_BT`` was added to the output (negative: none), more than once at times.

    A product with a row of zeros and a single one, whose Gram matrix says which rows are the same.
    """

    name: str
    rows: int
    slots_BT: Tensor
    gradients_BTO: Tensor

    def squared_norms(self) -> Tensor:
        """(B,)."""
        used_BT = self.slots_BT >= 0
        same_BTT = (self.slots_BT[:, :, None] == self.slots_BT[:, None]) & used_BT[:, :, None]
        summed_BTO = same_BTT.to(self.gradients_BTO.dtype) @ self.gradients_BTO
        # Each row's sum once: where the slot occurs for the first time.
        first_BT = used_BT & (same_BTT.long().argmax(dim=2) == torch.arange(same_BTT.shape[1], device=used_BT.device))
        return (summed_BTO.square().sum(dim=2) * first_BT).sum(dim=1)

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Each row's sum."""
        gradients_BTO = self.gradients_BTO * weight_B[:, None, None]
        # One place more, for those who use none.
        table = gradients_BTO.new_zeros(self.rows + 1, gradients_BTO.shape[2])
        return {self.name: table.index_add_(0, self.slots_BT.flatten() + 1, gradients_BTO.flatten(0, 1))[1:]}


@dataclass(frozen=True)
class Routed(PatientGradients):
    """Of an affine layer of every expert: row r is a token of ``patient_R`` at ``expert_R``, sorted by both."""

    names: AffineNames
    patients: int
    experts: int
    expert_R: Tensor
    patient_R: Tensor
    inputs_RI: Tensor
    gradients_RO: Tensor

    def squared_norms(self) -> Tensor:
        """(B,): groups of rows of one patient at one expert, those of similar length at once."""
        group_R = self.expert_R * self.patients + self.patient_R
        rows_G = torch.bincount(group_R, minlength=self.experts * self.patients)
        first_G, norms_G = rows_G.cumsum(0) - rows_G, self.gradients_RO.new_zeros(len(rows_G))
        shorter, length, longest = 0, SHORTEST, int(rows_G.max()) if len(self.expert_R) else 0
        while shorter < longest:
            group_S = ((rows_G > shorter) & (rows_G <= length)).nonzero().squeeze(1)
            if len(group_S):
                norms_G[group_S] = self._norms_of(first_G[group_S], rows_G[group_S], length)
            shorter, length = length, max(length + SHORTEST, length * 5 // 4)
        return norms_G.reshape(self.experts, self.patients).sum(dim=0)

    def _norms_of(self, first_S: Tensor, rows_S: Tensor, length: int) -> Tensor:
        every_T = torch.arange(length, device=first_S.device)
        place_ST = (first_S[:, None] + every_T).clamp(max=len(self.expert_R) - 1)
        outside_ST1 = (every_T >= rows_S[:, None])[:, :, None]
        # Not a product with zero: what fills a group up is another patient's, and may have overflowed.
        inputs_STI, gradients_STO = (
            rows[place_ST].masked_fill_(outside_ST1, 0.0) for rows in (self.inputs_RI, self.gradients_RO)
        )
        weight, bias = self.names.weight is not None, self.names.bias is not None
        return squared_norms(inputs_STI, gradients_STO, weight, bias)

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """One product for each expert."""
        found, gradients_RO = {}, self.gradients_RO * weight_B[self.patient_R, None]
        if self.names.weight is not None:
            found[self.names.weight] = self._products(gradients_RO)
        if self.names.bias is not None:
            bias_EO = gradients_RO.new_zeros(self.experts, gradients_RO.shape[1])
            found[self.names.bias] = bias_EO.index_add_(0, self.expert_R, gradients_RO)
        return found

    def _products(self, gradients_RO: Tensor) -> Tensor:
        ends_E = torch.bincount(self.expert_R, minlength=self.experts).cumsum(0)
        if gradients_RO.is_cuda and prefers_grouped(gradients_RO):
            return grouped_mm(self.inputs_RI.T, gradients_RO, offs=ends_E.to(torch.int32))
        rows = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).tolist()
        parts = zip(self.inputs_RI.split(rows), gradients_RO.split(rows), strict=True)
        return torch.stack([inputs.T @ gradients for inputs, gradients in parts])


def _finite(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.nan_to_num(0.0, 0.0, 0.0)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return value
