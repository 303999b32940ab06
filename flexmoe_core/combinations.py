"""Combinations of observed modalities: their table, who gets which expert, and back-off for the unseen.

A combination is an int bitmask over the study's modalities. Nothing here grows with 2^M: memory follows the
combinations that exist.

Shapes: B patients, U distinct combinations of theirs, C combinations of the table, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flexmoe_core.study import MOST_MODALITIES

NO_SLOT = -1


@dataclass(frozen=True)
class Placement:
    """What the table says of each patient of a batch.

    ``expert_B`` int64 is the expert of the patient's combination, ``full_B`` bool says that nothing is missing,
    ``generalist_B`` bool that the patient may teach the experts in the generalize stage, and ``slots_BM`` int64
    is the bank's residual row for each modality (``NO_SLOT``: observed, or the default alone).
    """

    expert_B: Tensor
    full_B: Tensor
    generalist_B: Tensor
    slots_BM: Tensor

    def select(self, index_B: Tensor) -> Placement:
        """The patients at the given positions."""
        return Placement(
            self.expert_B[index_B], self.full_B[index_B], self.generalist_B[index_B], self.slots_BM[index_B]
        )

    def to(self, device: torch.device) -> Placement:
        """The same placement on another device."""
        return Placement(
            self.expert_B.to(device),
            self.full_B.to(device),
            self.generalist_B.to(device),
            self.slots_BM.to(device),
        )


@dataclass(frozen=True)
class CombinationTable:
    """The combinations of a federation, fixed before the first round.

    ``masks`` are ordered by descending number of modalities, then by mask; index 0 is the full set whether seen
    or not. ``experts[i]`` is the expert of ``masks[i]``. ``generalists`` are the combinations whose patients
    teach experts and router in the generalize stage: the full set, or the largest ones where nobody is full.
    """

    modalities: int
    masks: tuple[int, ...]
    experts: tuple[int, ...]
    generalists: tuple[int, ...]

    @classmethod
    def build(
        cls,
        modalities: int,
        experts: int,
        announced: Mapping[str, Mapping[int, int]],
        min_full: int,
        declared: Iterable[int] = (),
    ) -> CombinationTable:
        """The table of what sites announce ({site: {mask: training patients}}), or of the study's own list."""
        full = (1 << modalities) - 1
        sites = {mask: sum(mask in one for one in announced.values()) for one in announced.values() for mask in one}
        masks = _in_order(full, set(declared) or set(sites))
        by_spread = sorted(masks[1:], key=lambda mask: (-sites.get(mask, 0), -mask.bit_count(), mask))
        owner = {full: 0} | {mask: expert for expert, mask in enumerate(by_spread[: experts - 1], start=1)}
        owners = [mask for mask in masks if mask in owner]
        nearest = _nearness(torch.tensor(masks), torch.tensor(owners), modalities).argmin(dim=1)
        assigned = tuple(owner[owners[place]] for place in nearest.tolist())
        enough = {mask for one in announced.values() for mask, patients in one.items() if patients >= min_full}
        return cls(modalities, masks, assigned, _generalists(full, enough))

    @property
    def full_mask(self) -> int:
        """The combination in which every modality is observed."""
        return (1 << self.modalities) - 1

    @cached_property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """The bank's residual rows: (combination, missing modality), in table order."""
        return tuple((mask, m) for mask in self.masks for m in range(self.modalities) if not mask >> m & 1)

    def place(self, masks_B: Tensor) -> Placement:
        """Expert, stage membership and bank rows of each patient.

        A combination that the table lacks has the expert of its nearest one. Its row for a missing modality is
        that of the nearest one that also lacks the modality; a nearer one that observes it has no such row.
        """
        masks_U, inverse_B = torch.unique(masks_B.cpu(), return_inverse=True)
        known_C = torch.tensor(self.masks)
        rank_UC = _nearness(masks_U, known_C, self.modalities)
        lacks_UM, lacks_CM = ~_observed(masks_U, self.modalities), ~_observed(known_C, self.modalities)
        row_CM = lacks_CM.flatten().cumsum(dim=0).reshape(lacks_CM.shape) - 1
        slots_UM = torch.full(lacks_UM.shape, NO_SLOT)
        for m in range(self.modalities):
            lacking = lacks_CM[:, m].nonzero().squeeze(1)
            if len(lacking):
                nearest_U = lacking[rank_UC[:, lacking].argmin(dim=1)]
                slots_UM[:, m] = torch.where(lacks_UM[:, m], row_CM[nearest_U, m], NO_SLOT)
        return Placement(
            expert_B=torch.tensor(self.experts)[rank_UC.argmin(dim=1)][inverse_B],
            full_B=(masks_U == self.full_mask)[inverse_B],
            generalist_B=torch.isin(masks_U, torch.tensor(self.generalists))[inverse_B],
            slots_BM=slots_UM[inverse_B],
        ).to(masks_B.device)

    def to_json(self) -> dict[str, object]:
        """Plain values for a message or a checkpoint."""
        return {
            "modalities": self.modalities,
            "masks": list(self.masks),
            "experts": list(self.experts),
            "generalists": list(self.generalists),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> CombinationTable:
        """The inverse of ``to_json``; raises KeyError, TypeError or ValueError on anything else."""

        def integers(key: str) -> tuple[int, ...]:
            listed = value[key]
            if not isinstance(listed, list) or not all(type(one) is int for one in listed):
                raise TypeError(f"{key} must be a list of integers")
            return tuple(listed)

        modalities = value["modalities"]
        if type(modalities) is not int or not 1 <= modalities <= MOST_MODALITIES:
            raise TypeError(f"modalities must be an integer of 1 to {MOST_MODALITIES}")
        table = cls(modalities, integers("masks"), integers("experts"), integers("generalists"))
        if not all(0 < mask <= table.full_mask for mask in (*table.masks, *table.generalists)):
            raise ValueError("a combination is not one of the modalities")
        if table.masks != _in_order(table.full_mask, table.masks) or not table.generalists:
            raise ValueError("the combinations are out of order, or none of them generalizes")
        if len(table.experts) != len(table.masks) or min(table.experts) < 0:
            raise ValueError("each combination needs an expert")
        return table


def _in_order(full: int, masks: Iterable[int]) -> tuple[int, ...]:
    return (full, *sorted(set(masks) - {full}, key=lambda mask: (-mask.bit_count(), mask)))


def _observed(masks_U: Tensor, modalities: int) -> Tensor:
    """Bitmasks (U,) to bool (U, M)."""
    return (masks_U[:, None] >> torch.arange(modalities) & 1).bool()


def _nearness(masks_U: Tensor, known_C: Tensor, modalities: int) -> Tensor:
    """Distinct ranks (U, C), lowest for the nearest: fewest differing modalities, supersets first, lowest index."""
    observed_UM, known_CM = (_observed(masks, modalities).float() for masks in (masks_U, known_C))
    lost_UC, gained_UC = observed_UM @ (1 - known_CM).T, (1 - observed_UM) @ known_CM.T
    distance_UC = 2 * (lost_UC + gained_UC).long() + (lost_UC > 0)
    return distance_UC * len(known_C) + torch.arange(len(known_C))


def _generalists(full: int, enough: set[int]) -> tuple[int, ...]:
    if not enough:
        return (full,)
    largest = max(mask.bit_count() for mask in enough)
    return tuple(sorted(mask for mask in enough if mask.bit_count() == largest))
