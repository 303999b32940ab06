"""What a model says of some patients: class probabilities and the use of experts.

Shapes: B patients, Y classes, E experts, C combinations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flexmoe_core.cells import merge_small_cells
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import MessageError
from flexmoe_core.mixture import ExpertUse
from flexmoe_core.model import FlexMoe
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.scores import Scores

BATCH_SIZE = 1024
OTHER = "other"
GATES = "gates"


@dataclass(frozen=True)
class Predictions:
    """``probabilities_BY`` and, averaged over sparse layers, each patient's mean gate per expert ``gates_BE``.

    A model without experts has E = 0.
    """

    probabilities_BY: np.ndarray
    gates_BE: np.ndarray


@dataclass(frozen=True)
class CellResult:
    """Additive results of some patients: their scores, and ``gates_E``, their mean gates summed (float64)."""

    scores: Scores
    gates_E: np.ndarray

    def __add__(self, other: CellResult) -> CellResult:
        return CellResult(self.scores + other.scores, self.gates_E + other.gates_E)


@torch.no_grad()
def predict(model: FlexMoe, cohort: Cohort, table: CombinationTable, *, specialize: bool) -> Predictions:
    """Score patients without any randomness; no patients give empty arrays."""
    placement = table.place(cohort.masks_B)
    probabilities, gates = [], []
    for index_B in torch.arange(len(cohort), device=cohort.labels_B.device).split(BATCH_SIZE):
        output = model(cohort.select(index_B), placement.select(index_B), specialize=specialize)
        probabilities.append(output.logits_BY.double().softmax(dim=1).cpu())
        gates.append(_mean_gates(output.use, len(index_B)))
    return Predictions(torch.cat(probabilities).numpy(), torch.cat(gates).numpy())


def _mean_gates(layers: Sequence[ExpertUse], patients: int) -> Tensor:
    """(B, E) float64 on the CPU."""
    if not layers:
        return torch.zeros(patients, 0, dtype=torch.float64)
    return torch.stack([use.gates_BE for use in layers]).double().mean(dim=0).cpu()


def score_cells(predictions: Predictions, cohort: Cohort, min_cell: int) -> dict[int | None, CellResult]:
    """Results per combination with at least ``min_cell`` patients, the rest merged under None."""
    masks_B, labels_B = cohort.masks_B.cpu().numpy(), cohort.labels_B.cpu().numpy()
    cells = {
        int(mask): Scores.of(predictions.probabilities_BY[masks_B == mask], labels_B[masks_B == mask])
        for mask in np.unique(masks_B)
    }
    merged = merge_small_cells(cells, min_cell)
    named = [mask for mask in merged if mask is not None]
    return {
        mask: CellResult(
            scores,
            predictions.gates_BE[masks_B == mask if mask is not None else ~np.isin(masks_B, named)].sum(axis=0),
        )
        for mask, scores in merged.items()
    }


def cells_to_arrays(cells: Mapping[int | None, CellResult]) -> dict[str, np.ndarray]:
    """Arrays named ``<combination or other>/<field>``, for a message."""
    arrays: dict[str, np.ndarray] = {}
    for mask, cell in cells.items():
        name = OTHER if mask is None else str(mask)
        arrays |= with_prefix(name, {**cell.scores.to_arrays(), GATES: cell.gates_E})
    return arrays


def cells_from_arrays(
    arrays: Mapping[str, np.ndarray], classes: int, experts: int, full_mask: int
) -> dict[int | None, CellResult]:
    """The inverse of ``cells_to_arrays`` for arrays that somebody else sent; raises MessageError."""
    cells: dict[int | None, CellResult] = {}
    for name in sorted({name.split("/", 1)[0] for name in arrays}):
        if name != OTHER and not _is_combination(name, full_mask):
            raise MessageError("scores are given for something that is no combination")
        own = under_prefix(name, arrays)
        gates_E = own.pop(GATES, None)
        if (
            gates_E is None
            or gates_E.shape != (experts,)
            or gates_E.dtype != np.float64
            or not np.isfinite(gates_E).all()
        ):
            raise MessageError("scores come without a finite gate for each expert")
        cells[None if name == OTHER else int(name)] = CellResult(Scores.from_arrays(own, classes), gates_E)
    return cells


def _is_combination(name: str, full_mask: int) -> bool:
    """Whether it is the one spelling of a combination; thousands of digits are not even read."""
    short = name.isascii() and name.isdigit() and len(name) <= len(str(full_mask))
    return short and int(name) <= full_mask and str(int(name)) == name


def total_scores(cells: Mapping[int | None, CellResult]) -> Scores:
    """The scores of all patients of some cells, at least one."""
    first, *rest = (cell.scores for cell in cells.values())
    return sum(rest, start=first)


def add_cells(
    first: Mapping[int | None, CellResult], second: Mapping[int | None, CellResult]
) -> dict[int | None, CellResult]:
    """Results of the patients of both, by combination."""
    total = dict(first)
    for mask, cell in second.items():
        total[mask] = total[mask] + cell if mask in total else cell
    return total
