"""The tensors of some patients: what a site reads from its files and a model learns from.

Shapes: B patients, M modalities, F features of one modality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

UNKNOWN_LABEL = -1


@dataclass(frozen=True)
class Cohort:
    """Patients in file order.

    ``inputs[m]`` is (B, F_m) float32 for each modality that the site may observe; the rows of patients who lack
    the modality are zero and are never read. ``observed_BM`` is bool over the study's modalities in order,
    ``labels_B`` int64 class indices (``UNKNOWN_LABEL`` where there is none).
    """

    inputs: Mapping[str, Tensor]
    observed_BM: Tensor
    labels_B: Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    @property
    def masks_B(self) -> Tensor:
        """Each patient's combination as an int64 bitmask: bit m is the study's modality m."""
        powers_M = 2 ** torch.arange(self.observed_BM.shape[1], device=self.observed_BM.device)
        return (self.observed_BM * powers_M).sum(dim=1)

    def select(self, index_B: Tensor) -> Cohort:
        """The patients at the given positions (int64), in that order."""
        return Cohort(
            inputs={name: x_BF[index_B] for name, x_BF in self.inputs.items()},
            observed_BM=self.observed_BM[index_B],
            labels_B=self.labels_B[index_B],
        )

    def __add__(self, other: Cohort) -> Cohort:
        """These patients, then the other's, of the same site."""
        return Cohort(
            inputs={name: torch.cat([x_BF, other.inputs[name]]) for name, x_BF in self.inputs.items()},
            observed_BM=torch.cat([self.observed_BM, other.observed_BM]),
            labels_B=torch.cat([self.labels_B, other.labels_B]),
        )

    def to(self, device: torch.device) -> Cohort:
        """The same patients on another device."""
        return Cohort(
            inputs={name: x_BF.to(device) for name, x_BF in self.inputs.items()},
            observed_BM=self.observed_BM.to(device),
            labels_B=self.labels_B.to(device),
        )
