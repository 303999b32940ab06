"""Volume encoder: a 3-D image to P tokens, by a small convolutional network beside a coarse grid of means.

Shapes: B patients, C channels, D, H, W voxels (also of coarser grids), F features; of the tokens P, and their width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flexmoe_core.chance import Chance
from flexmoe_core.dropout import dropout
from flexmoe_core.encoders.projection import ProjectionEncoder
from flexmoe_core.settings import ModelSettings

GRID = 4
"""Cells along each axis of what is left of a volume: where something is matters in aligned images."""
MOST_DOUBLINGS = 2
PATIENTS_AT_ONCE = 16


def build_volume(shape: tuple[int, ...], settings: ModelSettings) -> VolumeEncoder:
    """The encoder of inputs (B, D, H, W), with at least 8 voxels along each axis."""
    return VolumeEncoder(shape, settings)


class VolumeEncoder(nn.Module):
    """Strided convolutions down to a small grid, next to the grid's own mean intensities, projected to tokens.

    Normalization takes what is typical of one image out of the convolutions, as scanners differ in it; the means,
    a linear view of the image, keep how bright it is.
    """

    def __init__(self, shape: Sequence[int], settings: ModelSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, size = 1, tuple(shape)
        while max(size) >= 2 * GRID:
            stride = tuple(2 if length >= 2 * GRID else 1 for length in size)
            doublings = min(len(layers), MOST_DOUBLINGS)
            layers.append(ConvolutionLayer(channels, settings.volume_channels << doublings, stride))
            channels, size = settings.volume_channels << doublings, halved(size, stride)
        layers.append(ConvolutionLayer(channels, channels, (1, 1, 1)))
        self.convolutions = nn.Sequential(*layers)
        self.rate = settings.encoder_dropout
        self.projection = ProjectionEncoder(
            (1 + channels) * GRID**3,
            settings.tokens,
            settings.width,
            settings.encoder_hidden,
            settings.encoder_dropout,
        )

    def forward(self, x_BDHW: Tensor, generator: Chance | None) -> Tensor:
        """(B, D, H, W) float32 to (B, P, width); B may be 0. A few patients at a time, as volumes are large."""
        x_BF = torch.cat([self._features(part_BDHW) for part_BDHW in x_BDHW.split(PATIENTS_AT_ONCE)])
        tokens: Tensor = self.projection(dropout(x_BF, self.rate, generator), generator)
        return tokens

    def _features(self, x_BDHW: Tensor) -> Tensor:
        found_BCDHW = self.convolutions(x_BDHW[:, None])
        cells_BF = nn.functional.adaptive_avg_pool3d(found_BCDHW, GRID).flatten(1)
        return torch.cat([coarse_means(x_BDHW).to(cells_BF.dtype), cells_BF], dim=1)


class ConvolutionLayer(nn.Module):
    """A convolution over 3 x 3 x 3 voxels, normalized within each patient."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels_in, channels_out, 3, (stride[0], stride[1], stride[2]), 1, bias=False)
        self.norm = nn.GroupNorm(1, channels_out)

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """To (B, C, D, H, W) of the next layer's channels, and half as long where the stride is 2."""
        return nn.functional.gelu(self.norm(self.convolution(x_BCDHW)))


def coarse_means(x_BDHW: Tensor) -> Tensor:
    """(B, 64): the mean intensity of each cell of a grid of 4 x 4 x 4."""
    return nn.functional.adaptive_avg_pool3d(x_BDHW[:, None], GRID).flatten(1)


def halved(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """What a padded convolution leaves of each axis."""
    return tuple(-(-length // step) for length, step in zip(size, stride, strict=True))
