"""How many patients have which modalities, and what of it a site announces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flexmoe_core.cohort import Cohort
from flexmoe_core.study import Study


@dataclass(frozen=True)
class Coverage:
    """Patients of a cohort: all, per combination mask (largest combinations first) and per modality."""

    patients: int
    combinations: Mapping[int, int]
    modalities: Mapping[str, int]


def coverage(cohort: Cohort, study: Study) -> Coverage:
    """Exact counts, for the site's own eyes."""
    masks, counts = torch.unique(cohort.masks_B, return_counts=True)
    of_mask = dict(zip(masks.tolist(), counts.tolist(), strict=True))
    observed = cohort.observed_BM.sum(dim=0).tolist()
    return Coverage(
        patients=len(cohort),
        combinations={mask: of_mask[mask] for mask in sorted(of_mask, key=lambda mask: (-mask.bit_count(), mask))},
        modalities=dict(zip(study.modality_names, observed, strict=True)),
    )


def announced_combinations(cohort: Cohort, min_cell: int) -> dict[int, int]:
    """Patients per combination mask, of combinations that at least ``min_cell`` of them have."""
    masks, counts = torch.unique(cohort.masks_B, return_counts=True)
    pairs = zip(masks.tolist(), counts.tolist(), strict=True)
    return {mask: count for mask, count in pairs if mask and count >= min_cell}


def observed_patients(cohort: Cohort, study: Study, min_cell: int) -> dict[str, int]:
    """Patients per modality, of modalities that at least ``min_cell`` of them have."""
    return {name: count for name, count in coverage(cohort, study).modalities.items() if count >= min_cell}
