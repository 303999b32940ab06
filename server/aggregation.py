"""The exact sum of the sites' updates, and its quotient: one mean delta per row.

Shapes: R rows of a tensor that carry a weight of their own, F numbers in each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flexmoe_core.update import (
    MAX_SITES,
    TensorSpec,
    Update,
    fits_fixed_point,
    from_fixed_point,
    to_fixed_point,
)


@dataclass(frozen=True)
class Aggregate:
    """What the sites of one round say together; every shared tensor is present.

    ``delta[name]`` has the tensor's shape (float64), ``support[name]`` (R,) is the summed support in patients
    and ``contributors[name]`` (R,) the number of sites with support, which nobody knows of a masked sum: there it is
    empty. A row with zero support has delta zero and must keep the server's value. ``refused[name]`` lists rows that
    a robust rule had too few contributors for; their support is zero.
    """

    delta: dict[str, NDArray[np.float64]]
    support: dict[str, NDArray[np.float64]]
    contributors: dict[str, NDArray[np.int64]]
    refused: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Aggregator(Protocol):
    """Takes the updates of one round one by one, each already past the door, then gives their mean."""

    def add(self, update: Update) -> None:
        """Take one site's update."""

    def mean(self) -> Aggregate:
        """The mean of all updates so far."""


class FixedPointSum:
    """Support-weighted mean by a streaming int64 sum: exact, and the same bits in any order of arrival.

    Memory is one int64 model whatever the number of sites. A row's denominator is the support of the sites
    that trained it, never that of the whole federation.
    """

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._weighted = {name: np.zeros(spec.shape, np.int64) for name, spec in self._specs.items()}
        self._support = {name: np.zeros(spec.rows, np.int64) for name, spec in self._specs.items()}
        self._contributors = {name: np.zeros(spec.rows, np.int64) for name, spec in self._specs.items()}
        self._sites = 0

    def add(self, update: Update) -> None:
        """Add one site's update, or nothing of it.

        Raises ``ValueError`` on what the door refuses as unknown, misshapen or outside the code's range, and
        ``OverflowError`` beyond ``MAX_SITES`` updates.
        """
        if self._sites == MAX_SITES:
            raise OverflowError(f"a sum holds at most {MAX_SITES} updates")
        for name, values in update.weighted.items():
            if not self._fits(name, values, update.support[name]):
                raise ValueError(f"{name} is unknown, misshapen or outside the range of the fixed-point code")
        for name, values in update.weighted.items():
            code_R = to_fixed_point(update.support[name])
            self._weighted[name] += to_fixed_point(values)
            self._support[name] += code_R
            self._contributors[name] += code_R > 0
        self._sites += 1

    def _fits(self, name: str, values: NDArray[np.float32], w_R: NDArray[np.float64]) -> bool:
        spec = self._specs.get(name)
        return (
            spec is not None
            and (values.shape, w_R.shape) == (spec.shape, (spec.rows,))
            and fits_fixed_point(values)
            and fits_fixed_point(w_R)
        )

    def mean(self) -> Aggregate:
        """The mean delta of every row over the patients who trained it."""
        return divide(self._specs.values(), self._weighted, self._support, self._contributors)


def divide(
    specs: Iterable[TensorSpec],
    weighted: Mapping[str, NDArray[np.int64]],
    support: Mapping[str, NDArray[np.int64]],
    contributors: Mapping[str, NDArray[np.int64]] | None = None,
) -> Aggregate:
    """Summed codes of (w * delta, w), plain or unmasked, to mean deltas; zero where no site has support."""
    delta: dict[str, NDArray[np.float64]] = {}
    for spec in specs:
        code_RF = weighted[spec.name].reshape(spec.row_shape)
        w_R1 = support[spec.name][:, None]
        delta_RF = np.zeros(spec.row_shape)
        np.divide(code_RF, w_R1, out=delta_RF, where=w_R1 > 0)
        delta[spec.name] = delta_RF.reshape(spec.shape)
    return Aggregate(
        delta=delta,
        support={name: from_fixed_point(codes_R) for name, codes_R in support.items()},
        contributors={name: count_R.copy() for name, count_R in (contributors or {}).items()},
    )
