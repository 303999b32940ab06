"""A site's update: for every shared tensor, or row of one, the pair (w * delta, w), and its fixed-point code.

w is the support, counted in patients. Servers add the pairs and divide, so a tensor or row that a site did
not train has support zero and pulls nothing towards zero.

Shapes: R rows of a tensor that carry a weight of their own, F numbers in each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SCALE_BITS: Final = 32
"""The code counts units of 2**-32: a pair is exact to 1.2e-10, far below float32 noise of a trained delta."""
MAGNITUDE_BITS: Final = 20
"""One site's numbers stay below 2**20 in magnitude, which holds a million patients."""
MAX_SITES: Final = 2 ** (63 - SCALE_BITS - MAGNITUDE_BITS) - 1
"""Updates of one sum: 2047, which keep it below 2**31 in magnitude and its code inside int64."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape of one shared tensor; ``rows`` is 1 when the whole tensor has one weight, else ``shape[0]``."""

    name: str
    shape: tuple[int, ...]
    rows: int

    def __post_init__(self) -> None:
        if self.rows != 1 and (not self.shape or self.rows != self.shape[0]):
            raise ValueError(f"{self.name}: {self.rows} rows do not fit shape {self.shape}")

    @property
    def row_shape(self) -> tuple[int, int]:
        """The tensor seen as rows: one row of all its numbers, or one row per index of its first axis."""
        return self.rows, math.prod(self.shape) // max(self.rows, 1)


@dataclass(frozen=True)
class Update:
    """``weighted[name]`` is w * delta, float32 of the tensor's shape; ``support[name]`` is w, float64 (R,).

    A tensor that a site does not send is in neither, and has zero support.
    """

    weighted: Mapping[str, NDArray[np.float32]]
    support: Mapping[str, NDArray[np.float64]]


def build_update(
    specs: Iterable[TensorSpec],
    before: Mapping[str, NDArray[Any]],
    after: Mapping[str, NDArray[Any]],
    support: Mapping[str, NDArray[np.float64]],
) -> Update:
    """The pair of each tensor from its values before and after local training.

    Differences are taken in float64 and stored in float32. Tensors without support are left out; rows without
    support are zero, whatever happened to them. Raises ``TypeError`` when a tensor is not floating point: an
    averaged counter means nothing, so none may be shared.
    """
    weighted: dict[str, NDArray[np.float32]] = {}
    sent: dict[str, NDArray[np.float64]] = {}
    for spec in specs:
        w_R = np.asarray(support.get(spec.name, np.zeros(spec.rows)), dtype=np.float64)
        if not w_R.any():
            continue
        for values in (before[spec.name], after[spec.name]):
            if not np.issubdtype(values.dtype, np.floating):
                raise TypeError(f"{spec.name} is {values.dtype}; only floating-point tensors can be shared")
        start_RF = before[spec.name].reshape(spec.row_shape).astype(np.float64)
        end_RF = after[spec.name].reshape(spec.row_shape).astype(np.float64)
        w_R1 = w_R[:, None]
        weighted_RF = np.where(w_R1 > 0, w_R1 * (end_RF - start_RF), 0.0)
        weighted[spec.name] = weighted_RF.astype(np.float32).reshape(spec.shape)
        sent[spec.name] = w_R
    return Update(weighted=weighted, support=sent)


def joint_norm(update: Update, specs: Iterable[TensorSpec]) -> float:
    """L2 norm of the site's unweighted delta over all rows that have support, in float64."""
    total = 0.0
    for spec in specs:
        if spec.name in update.weighted:
            w_R = update.support[spec.name]
            weighted_RF = update.weighted[spec.name].reshape(spec.row_shape)[w_R > 0]
            delta_RF = weighted_RF.astype(np.float64) / w_R[w_R > 0, None]
            total += float(np.square(delta_RF).sum())
    return math.sqrt(total)


def fits_fixed_point(values: NDArray[Any]) -> bool:
    """Whether the values are floating point, finite, and inside the range of one site's code."""
    if not np.issubdtype(values.dtype, np.floating):
        return False
    limit = 2.0**MAGNITUDE_BITS
    return values.size == 0 or bool(values.max() < limit and values.min() > -limit)


def to_fixed_point(values: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """``rint(x * 2**SCALE_BITS)``: integers add exactly, in any order, and modulo 2**64 under a mask.

    Resolution 2**-32, range (-2**20, 2**20) for one site. Raises ``ValueError`` outside it, on NaN, and
    on values that are not floating point.
    """
    if not fits_fixed_point(values):
        raise ValueError(f"not floating-point values, finite and below 2**{MAGNITUDE_BITS} in magnitude")
    codes: NDArray[np.int64] = np.rint(values.astype(np.float64) * 2.0**SCALE_BITS).astype(np.int64)
    return codes


def from_fixed_point(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The numbers that the codes stand for; sums up to 2**31 in magnitude, correct to float64."""
    return codes.astype(np.float64) / 2.0**SCALE_BITS
