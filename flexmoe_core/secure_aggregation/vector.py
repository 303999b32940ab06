"""The flat vector that is masked: blocks of int64 codes one after the other, and numbers that prove the sum whole.

Shapes: V numbers of a vector, R rows of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.secure_aggregation.streams import Vector
from flexmoe_core.update import MAGNITUDE_BITS, SCALE_BITS, TensorSpec, Update, to_fixed_point

CHECK_NUMBERS: Final = 4
"""Ones at the end of each vector: their sums are the number of sites, or the sum is not what sites masked."""
CODE_BITS: Final = SCALE_BITS + MAGNITUDE_BITS

Codes = Mapping[str, NDArray[np.int64]]
Rows = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the blocks, in order: the same at all sites, whatever they have."""

    blocks: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def numbers(self) -> int:
        """V."""
        return sum(math.prod(shape) for _, shape in self.blocks) + CHECK_NUMBERS

    def encode(self, codes: Codes) -> Vector:
        """One site's vector; a block that it does not have is zero. Raises ValueError for an unknown block."""
        if unknown := codes.keys() - {name for name, _ in self.blocks}:
            raise ValueError(f"no such block: {', '.join(sorted(unknown))}")
        vector_V = np.zeros(self.numbers, np.int64)
        start = 0
        for name, shape in self.blocks:
            size = math.prod(shape)
            if name in codes:
                vector_V[start : start + size].reshape(shape)[...] = codes[name]
            start += size
        vector_V[start:] = 1
        return vector_V.view(np.uint64)

    def decode(self, total_V: Vector, sites: int) -> dict[str, NDArray[np.int64]]:
        """The summed blocks. Raises MaskingRefused unless the vectors of exactly so many sites were added up.

        Masks that did not cancel leave the proving numbers right by a chance of 2**-256.
        """
        codes_V = total_V.view(np.int64)
        if len(codes_V) != self.numbers or not (codes_V[-CHECK_NUMBERS:] == sites).all():
            raise MaskingRefused("the unmasked vector is not a sum of what the sites sent")
        blocks: dict[str, NDArray[np.int64]] = {}
        start = 0
        for name, shape in self.blocks:
            size = math.prod(shape)
            blocks[name] = codes_V[start : start + size].reshape(shape)
            start += size
        return blocks


def layout_of_update(specs: Iterable[TensorSpec], extra: Iterable[tuple[str, tuple[int, ...]]] = ()) -> Layout:
    """(w * delta, w) of every shared tensor, and what travels with them."""
    specs = tuple(specs)
    weighted = tuple((f"weighted/{spec.name}", spec.shape) for spec in specs)
    support = tuple((f"support/{spec.name}", (spec.rows,)) for spec in specs)
    return Layout((*weighted, *support, *extra))


def layout_of_rows(specs: Iterable[TensorSpec]) -> Layout:
    """One number for each row of each shared tensor."""
    return Layout(tuple((f"rows/{spec.name}", (spec.rows,)) for spec in specs))


def codes_of_update(update: Update, specs: Iterable[TensorSpec], released: Rows) -> dict[str, NDArray[np.int64]]:
    """The fixed-point codes that the plain sum adds, with zero in every row that may not be released."""
    codes: dict[str, NDArray[np.int64]] = {}
    for spec in specs:
        if spec.name in update.weighted:
            rows_R = released[spec.name]
            weighted = to_fixed_point(update.weighted[spec.name]).reshape(spec.row_shape)
            codes[f"weighted/{spec.name}"] = np.where(rows_R[:, None], weighted, 0).reshape(spec.shape)
            codes[f"support/{spec.name}"] = np.where(rows_R, to_fixed_point(update.support[spec.name]), 0)
    return codes


def sums_of_update(
    blocks: Codes, sites: int, max_support: float
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """Summed (w * delta, w) by tensor. Raises MaskingRefused where a number is outside what so many sites can add.

    It is all that a coordinator can check: a site that lies within the range cannot be named.
    """
    weighted, support = under_prefix("weighted", blocks), under_prefix("support", blocks)
    most_support = sites * int(to_fixed_point(np.array([max_support]))[0])
    for name, w_R in support.items():
        if (w_R < 0).any() or (w_R > most_support).any():
            raise MaskingRefused(f"the summed support of {name} is outside its range")
    for name, code in weighted.items():
        if code.size and max(int(code.max()), -int(code.min())) >= sites << CODE_BITS:
            raise MaskingRefused(f"the summed update of {name} is outside its range")
    return weighted, support


def rows_from_counts(counts: Codes, least: int) -> dict[str, NDArray[np.bool_]]:
    """Which rows may be released: those to which at least so many sites may contribute."""
    return {name: np.asarray(count_R >= least) for name, count_R in under_prefix("rows", counts).items()}


def votes(rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
    """One site's block for each tensor: 1 where it has patients who could train the row, 0 where it has none."""
    return with_prefix("rows", {name: (np.asarray(value_R) > 0).astype(np.int64) for name, value_R in rows.items()})
