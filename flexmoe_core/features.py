"""A column's values as numbers: what an encoder sees of a tabular modality.

A missing value is never an invented number: its value features are 0 and its missing flag is 1.
Shapes: B patients, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flexmoe_core.modalities.scale import fitted_range, scaled, squeezed
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn

MISSING_CODE = -1


def encode_numeric(column: NumericColumn, values_B: Tensor) -> Tensor:
    """(B,) float64, NaN where missing, to (B, 2) float32: the scaled value and the missing flag.

    The limits of the column's range, or the typical ones within it, become -2 and +2: one unit is roughly one
    standard deviation. Beyond typical limits the scale is logarithmic.
    """
    missing_B = values_B.isnan()
    if column.typical is None:
        scaled_B = scaled(values_B, column.range)
    else:
        scaled_B = squeezed(scaled(values_B, column.typical))
    scaled_B = scaled_B.masked_fill(missing_B, 0.0)
    return torch.stack([scaled_B, missing_B.to(scaled_B.dtype)], dim=1).float()


def encode_categorical(column: CategoricalColumn, codes_B: Tensor) -> Tensor:
    """(B,) int64 positions in the column's categories, -1 where missing, to (B, categories + 1) float32.

    One-hot over the categories (all zero when missing), then the missing flag.
    """
    count = len(column.categories)
    places_B = codes_B.where(codes_B != MISSING_CODE, count)
    return torch.nn.functional.one_hot(places_B, count + 1).float()


def encode(column: NumericColumn | CategoricalColumn, values_B: Tensor) -> Tensor:
    """The column's (B, width) float32 features, from float64 values or int64 codes by its type."""
    if isinstance(column, NumericColumn):
        return encode_numeric(column, values_B)
    return encode_categorical(column, values_B)


def fit_numeric(name: str, values_B: Tensor, unit: str = "") -> NumericColumn:
    """A local encoder's column, scaled by the values of the site's training patients (NaN where missing)."""
    return NumericColumn(name=name, unit=unit, range=fitted_range(values_B))
