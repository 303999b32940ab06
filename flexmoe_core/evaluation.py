"""What a model says of some patients: class probabilities and the use of experts.

Shapes: B patients, Y classes, E experts, C combinations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from flexmoe_core.cells import merge_small_cells
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import FlexMoe
from flexmoe_core.scores import Scores

BATCH_SIZE = 1024


@dataclass(frozen=True)
class Predictions:
    """``probabilities_BY`` and, summed over sparse layers, each patient's mean gate per expert ``gates_BE``."""

    probabilities_BY: np.ndarray
    gates_BE: np.ndarray


@torch.no_grad()
def predict(model: FlexMoe, cohort: Cohort, table: CombinationTable, *, specialize: bool) -> Predictions:
    """Score patients without any randomness; no patients give empty arrays."""
    placement = table.place(cohort.masks_B)
    probabilities, gates = [], []
    for index_B in torch.arange(len(cohort), device=cohort.labels_B.device).split(BATCH_SIZE):
        output = model(cohort.select(index_B), placement.select(index_B), specialize=specialize)
        probabilities.append(output.logits_BY.double().softmax(dim=1).cpu())
        gates.append(torch.stack([use.gates_BE for use in output.use]).mean(dim=0).cpu())
    return Predictions(torch.cat(probabilities).numpy(), torch.cat(gates).numpy())


def score_cells(predictions: Predictions, cohort: Cohort, classes: int, min_cell: int) -> dict[int | None, Scores]:
    """Scores per combination with at least ``min_cell`` patients, the rest merged under None."""
    masks_B, labels_B = cohort.masks_B.cpu().numpy(), cohort.labels_B.cpu().numpy()
    cells = {
        int(mask): Scores.of(predictions.probabilities_BY[masks_B == mask], labels_B[masks_B == mask])
        for mask in np.unique(masks_B)
    }
    return merge_small_cells(cells, min_cell) if cells else {}
