"""Combinations of observed modalities: their table, who gets which expert, and back-off for the unseen.

A combination is an int bitmask over the study's modalities. Nothing here grows with 2^M: memory follows the
combinations that exist.

Shapes: B patients, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
        present = set(declared) or set(sites)
        masks = (full, *sorted(present - {full}, key=lambda mask: (-mask.bit_count(), mask)))
        by_spread = sorted(masks[1:], key=lambda mask: (-sites.get(mask, 0), -mask.bit_count(), mask))
        owner = {full: 0} | {mask: expert for expert, mask in enumerate(by_spread[: experts - 1], start=1)}
        assigned = tuple(owner[_nearest(mask, [known for known in masks if known in owner])] for mask in masks)
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

    @cached_property
    def _slot_index(self) -> dict[tuple[int, int], int]:
        return {slot: index for index, slot in enumerate(self.slots)}

    def expert_of(self, mask: int) -> int:
        """The combination's expert; that of the nearest combination for one that is not in the table."""
        return self.experts[self.masks.index(_nearest(mask, self.masks))]

    def slot_of(self, mask: int, modality: int) -> int:
        """The residual row used for a missing modality: the combination's own, else that of the nearest one
        that also lacks the modality, else ``NO_SLOT`` (the default alone).
        """
        own = self._slot_index.get((mask, modality))
        if own is not None:
            return own
        lacking = [known for known in self.masks if not known >> modality & 1]
        if not lacking:
            return NO_SLOT
        return self._slot_index[_nearest(mask, lacking), modality]

    def place(self, masks_B: Tensor) -> Placement:
        """Expert, stage membership and bank rows of each patient."""
        distinct, inverse_B = torch.unique(masks_B.cpu(), return_inverse=True)
        masks = [int(mask) for mask in distinct]
        experts = [self.expert_of(mask) for mask in masks]
        slots = [
            [NO_SLOT if mask >> m & 1 else self.slot_of(mask, m) for m in range(self.modalities)] for mask in masks
        ]
        return Placement(
            expert_B=torch.tensor(experts, dtype=torch.int64)[inverse_B],
            full_B=torch.tensor([mask == self.full_mask for mask in masks], dtype=torch.bool)[inverse_B],
            generalist_B=torch.tensor([mask in self.generalists for mask in masks], dtype=torch.bool)[inverse_B],
            slots_BM=torch.tensor(slots, dtype=torch.int64).reshape(-1, self.modalities)[inverse_B],
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
        if not isinstance(modalities, int) or modalities < 1:
            raise TypeError("modalities must be a positive integer")
        table = cls(modalities, integers("masks"), integers("experts"), integers("generalists"))
        if table.masks[:1] != (table.full_mask,) or len(table.experts) != len(table.masks):
            raise ValueError("the first combination must be the full set, and each needs an expert")
        return table


def _nearest(mask: int, known: Iterable[int]) -> int:
    """Fewest differing modalities, supersets first, then lowest index."""
    return min(known, key=lambda other: ((mask ^ other).bit_count(), mask & ~other != 0))


def _generalists(full: int, enough: set[int]) -> tuple[int, ...]:
    if full in enough or not enough:
        return (full,)
    largest = max(mask.bit_count() for mask in enough)
    return tuple(sorted(mask for mask in enough if mask.bit_count() == largest))
