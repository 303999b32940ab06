"""Volumes: one 3-D image per patient, such as a brain scan, all of one shape.

Shapes: R patients, D, H, W voxels along the axes as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from flexmoe_core.modalities.base import Modality, Preprocessing
from flexmoe_core.modalities.scale import Range, range_of, scaled
from flexmoe_core.validation import Finding, raise_if_any

SHORTEST_AXIS, LONGEST_AXIS = 8, 1024
MOST_VOXELS = 2**27  # 512 x 512 x 512: half a GiB in float32
OUTLIER = 4.0
"""Where intensities are clipped, on the model's scale: at twice the range, so that metal cannot outshine all."""


def _not_too_many(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if math.prod(shape) > MOST_VOXELS:
        raise_if_any([Finding(f"has more than {MOST_VOXELS} voxels", "Resample the volumes to a coarser grid.")])
    return shape


Axis = Annotated[int, Field(strict=True, ge=SHORTEST_AXIS, le=LONGEST_AXIS)]
VolumeShape = Annotated[tuple[Axis, Axis, Axis], AfterValidator(_not_too_many)]
"""Voxels along each axis."""
Millimeters = Annotated[float, Field(strict=True, gt=0, le=1000)]
Spacing = tuple[Millimeters, Millimeters, Millimeters]
"""Millimeters from voxel to voxel along each axis."""


class VolumePreprocessing(Preprocessing):
    """Shape, and the range of intensities: its limits become -2 and +2, and outliers are clipped at -4 and +4."""

    kind: Literal["volume"] = "volume"
    voxels: VolumeShape
    range: Range

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W)."""
        return self.voxels

    def encode(self, volume_DHW: Tensor) -> Tensor:
        """Intensities as they stand in the file to float32 on the model's scale."""
        return scaled(volume_DHW.double(), self.range).clamp(-OUTLIER, OUTLIER).float()

    @classmethod
    def fitted(
        cls, voxels: tuple[int, int, int], volumes_RDHW: Tensor, training: Sequence[int]
    ) -> VolumePreprocessing:
        """A local encoder's, which standardizes over all voxels of the training volumes (maybe none)."""
        if not training:
            return cls(voxels=voxels, range=range_of(0.0, 0.0))
        moments = [torch.var_mean(volumes_RDHW[place].double(), correction=0) for place in training]
        variance_R, mean_R = (torch.stack(parts) for parts in zip(*moments, strict=True))
        deviation = (variance_R.mean() + mean_R.var(correction=0)).sqrt()
        return cls(voxels=voxels, range=range_of(mean_R.mean().item(), deviation.item()))


class VolumeModality(Modality):
    """Volumes of one shape and, if declared, one spacing; for a local encoder the site declares them."""

    kind: Literal["volume"] = "volume"
    voxels: VolumeShape | None = Field(default=None, alias="shape")
    range: Range | None = None
    spacing: Spacing | None = None

    @property
    def contents(self) -> str:
        """The voxels along each axis, and what lies between them."""
        if self.voxels is None:
            return ""
        spacing = f", {by_axis(self.spacing)} mm" if self.spacing else ""
        return f"{by_axis(self.voxels)} voxels{spacing}"

    @property
    def preprocessing(self) -> VolumePreprocessing:
        """The study's shape and range. Raises ValueError for a local encoder."""
        if self.voxels is None or self.range is None:
            raise self._only_its_site_knows()
        return VolumePreprocessing(voxels=self.voxels, range=self.range)

    @model_validator(mode="after")
    def _keys_fit_encoder(self) -> VolumeModality:
        remedy = "Move it to the site.toml of each hospital, or make the encoder shared."
        findings = list(self._key_findings("shape", self.voxels is not None, remedy))
        findings += self._key_findings("range", self.range is not None, remedy)
        if self.encoder == "local" and self.spacing is not None:
            findings.append(Finding("is not allowed with a local encoder", remedy, "spacing"))
        raise_if_any(findings)
        return self


def by_axis(numbers: tuple[float, ...]) -> str:
    """Numbers of the three axes as one reads them: '91 x 109 x 91'."""
    return " x ".join(f"{number:g}" for number in numbers)
