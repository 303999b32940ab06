"""A model as one site uses it: for any combination of modalities, with what the site knows of its own patients.

Shapes: B patients, Y classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.bundle import Bundle
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import is_specialized
from flexmoe_core.evaluation import Predictions, predict
from flexmoe_core.intercept import fit_intercept, shift
from flexmoe_core.model import FlexMoe


@dataclass(frozen=True)
class Predictor:
    """``intercept_Y`` joins the model's logits; ``prior_Y`` answers for patients with no modality at all."""

    model: FlexMoe
    table: CombinationTable
    specialize: bool
    prior_Y: np.ndarray
    intercept_Y: np.ndarray

    @classmethod
    def fitted(
        cls, model: FlexMoe, table: CombinationTable, specialize: bool, training: Cohort, spread: float
    ) -> Predictor:
        """With the prior and intercept of these training patients, at least one."""
        raw = _predict(model, training, table, specialize).probabilities_BY
        labels_B = training.labels_B.numpy()
        counts_Y = np.bincount(labels_B, minlength=raw.shape[1])
        return cls(model, table, specialize, counts_Y / counts_Y.sum(), fit_intercept(raw, labels_B, spread))

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Predictor:
        """As the site had it when it wrote the bundle."""
        facts = bundle.facts
        specialize = is_specialized(facts.rounds, facts.terms.method.curriculum)
        return cls(bundle.model, facts.table, specialize, np.array(facts.prior), np.array(facts.intercept))

    def __call__(self, cohort: Cohort) -> Predictions:
        """Class probabilities of every patient, and their use of experts (none without a modality)."""
        seen_B = cohort.observed_BM.any(dim=1)
        seen = _predict(self.model, cohort.select(seen_B.nonzero().squeeze(1)), self.table, self.specialize)
        probabilities_BY = np.tile(self.prior_Y, (len(cohort), 1))
        gates_BE = np.zeros((len(cohort), seen.gates_BE.shape[1]))
        probabilities_BY[seen_B.numpy()] = shift(seen.probabilities_BY, self.intercept_Y)
        gates_BE[seen_B.numpy()] = seen.gates_BE
        return Predictions(probabilities_BY, gates_BE)


def predict_cohort(bundle: Bundle, cohort: Cohort) -> np.ndarray:
    """Class probabilities (B, Y) of a bundle."""
    return Predictor.of_bundle(bundle)(cohort).probabilities_BY


def _predict(model: FlexMoe, cohort: Cohort, table: CombinationTable, specialize: bool) -> Predictions:
    device = next(model.parameters()).device
    return predict(model, cohort.to(device), table, specialize=specialize)
