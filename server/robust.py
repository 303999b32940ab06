"""Means that a bounded number of faulty or hostile sites cannot move far.

They read every site's delta on its own, so they cannot go with secure aggregation.

Shapes: S sites, R rows of a tensor that carry a weight of their own, F numbers in each row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat

from flexmoe_core.update import TensorSpec, Update, joint_norm
from server.aggregation import Aggregate, Aggregator, FixedPointSum


class AggregationSettings(BaseModel):
    """How updates are combined.

    ``mean`` is the plain support-weighted mean; ``norm-bounded`` clips each site's joint delta to
    ``norm_bound`` first; ``trimmed`` drops the ``faulty_sites`` lowest and highest values of each coordinate;
    ``median`` keeps the middle one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["mean", "norm-bounded", "trimmed", "median"] = "mean"
    norm_bound: PositiveFloat = 10.0
    faulty_sites: NonNegativeInt = 1

    def build(self, specs: Iterable[TensorSpec]) -> Aggregator:
        """A fresh aggregator for one round."""
        match self.rule:
            case "mean":
                return FixedPointSum(specs)
            case "norm-bounded":
                return NormBoundedSum(specs, self.norm_bound)
            case "trimmed":
                return TrimmedMean(specs, self.faulty_sites)
            case "median":
                return TrimmedMean(specs, None)


class NormBoundedSum:
    """The exact sum of updates whose joint delta is clipped to an L2 bound; ``clipped`` counts them."""

    def __init__(self, specs: Iterable[TensorSpec], bound: float) -> None:
        self._specs = tuple(specs)
        self._bound = bound
        self._sum = FixedPointSum(self._specs)
        self.clipped = 0

    def add(self, update: Update) -> None:
        """Add one site's update, scaled down as a whole when its norm is above the bound."""
        norm = joint_norm(update, self._specs)
        if norm > self._bound:
            scale = np.float32(self._bound / norm)
            weighted = {name: values * scale for name, values in update.weighted.items()}
            update = Update(weighted=weighted, support=update.support)
            self.clipped += 1
        self._sum.add(update)

    def mean(self) -> Aggregate:
        """The mean of the clipped deltas."""
        return self._sum.mean()


class TrimmedMean:
    """Coordinate-wise trimmed mean, or median, over the sites that have support for a row.

    Yin et al., "Byzantine-Robust Distributed Learning" (ICML 2018). Each site counts once: supports are claims,
    and a weight that a hostile site may choose would void the guarantee. For the same reason the support that
    is reported is the number of contributors times their median support. ``faulty`` values are dropped at
    either end; None drops all but the middle one or two. A row with fewer than 2 * faulty + 1 contributors
    (three for the median) is refused: zero support, so that the server keeps its value. All updates are held
    until the mean.
    """

    def __init__(self, specs: Iterable[TensorSpec], faulty: int | None) -> None:
        self._specs = tuple(specs)
        self._faulty = faulty
        self._updates: list[Update] = []

    def add(self, update: Update) -> None:
        """Keep one site's update."""
        self._updates.append(update)

    def mean(self) -> Aggregate:
        """The trimmed mean of every row, the same bits in any order of arrival."""
        aggregate = Aggregate(delta={}, support={}, contributors={})
        fewest = 3 if self._faulty is None else 2 * self._faulty + 1
        for spec in self._specs:
            w_SR = self._supports(spec)
            count_R = (w_SR > 0).sum(axis=0)
            kept_R = count_R >= fewest
            drop_R = (count_R - 1) // 2 if self._faulty is None else np.full(spec.rows, self._faulty)
            mean_RF = _trimmed(self._deltas(spec, w_SR), count_R, np.where(kept_R, drop_R, 0))
            aggregate.delta[spec.name] = np.where(kept_R[:, None], mean_RF, 0.0).reshape(spec.shape)
            aggregate.support[spec.name] = np.where(kept_R, count_R * _median_support(w_SR, count_R), 0.0)
            aggregate.contributors[spec.name] = count_R
            if refused := np.flatnonzero((count_R > 0) & ~kept_R).tolist():
                aggregate.refused[spec.name] = tuple(refused)
        return aggregate

    def _supports(self, spec: TensorSpec) -> NDArray[np.float64]:
        absent_R = np.zeros(spec.rows)
        rows = [update.support.get(spec.name, absent_R) for update in self._updates]
        return np.array(rows, dtype=np.float64).reshape(len(rows), spec.rows)

    def _deltas(self, spec: TensorSpec, w_SR: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each site's delta (S, R, F), infinite where it has no support: it then sorts behind every value."""
        delta_SRF = np.full((len(self._updates), *spec.row_shape), np.inf)
        for delta_RF, w_R, update in zip(delta_SRF, w_SR, self._updates, strict=True):
            if spec.name in update.weighted:
                weighted_RF = update.weighted[spec.name].reshape(spec.row_shape)
                np.divide(weighted_RF, w_R[:, None], out=delta_RF, where=w_R[:, None] > 0)
        return delta_SRF


def _trimmed(
    values_SRF: NDArray[np.float64], count_R: NDArray[np.int64], drop_R: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean over the sorted positions [drop, count - drop) of the site axis; zero where there are none."""
    place_S1 = np.arange(len(values_SRF))[:, None]
    kept_SR = (place_S1 >= drop_R) & (place_S1 < count_R - drop_R)
    sorted_SRF = np.sort(values_SRF, axis=0)
    total_RF = np.where(kept_SR[..., None], sorted_SRF, 0.0).sum(axis=0)
    mean_RF: NDArray[np.float64] = total_RF / np.maximum(kept_SR.sum(axis=0), 1)[:, None]
    return mean_RF


def _median_support(w_SR: NDArray[np.float64], count_R: NDArray[np.int64]) -> NDArray[np.float64]:
    w_SR1 = np.where(w_SR > 0, w_SR, np.inf)[..., None]
    return _trimmed(w_SR1, count_R, np.maximum(count_R - 1, 0) // 2)[:, 0]
