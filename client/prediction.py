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
from flexmoe_core.model import FlexMoe
from flexmoe_core.settings import SiteSettings
from flexmoe_core.site_effect import SiteEffect
from flexmoe_core.site_fit import fit_effect, fit_intercept, fit_share


@dataclass(frozen=True)
class Predictor:
    """``effect`` joins the model's logits; ``prior_Y`` answers for patients with no modality at all."""

    model: FlexMoe
    table: CombinationTable
    specialize: bool
    prior_Y: np.ndarray
    effect: SiteEffect

    @classmethod
    def during_training(
        cls, model: FlexMoe, table: CombinationTable, specialize: bool, training: Cohort, settings: SiteSettings
    ) -> Predictor:
        """The shared model with the site's intercept: it has learned from training patients (at least one) alone."""
        shared_BY = _predict(model, training, table, specialize).probabilities_BY
        effect = fit_intercept(model.modalities, shared_BY, training, settings)
        return cls(model, table, specialize, label_prior(training, shared_BY.shape[1]), effect)

    @classmethod
    def final(
        cls,
        model: FlexMoe,
        table: CombinationTable,
        specialize: bool,
        training: Cohort,
        validation: Cohort,
        share: float,
        settings: SiteSettings,
    ) -> Predictor:
        """The shared model with all that the site adds, which has learned from validation patients too.

        ``share`` is that of the site's own regression; validation patients must have chosen it before they taught.
        """
        patients = training + validation
        shared_BY = _predict(model, patients, table, specialize).probabilities_BY
        effect = fit_effect(model.modalities, shared_BY, patients, share, settings)
        return cls(model, table, specialize, label_prior(training, shared_BY.shape[1]), effect)

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Predictor:
        """As the site had it when it wrote the bundle."""
        facts = bundle.facts
        specialize = is_specialized(facts.rounds, facts.terms.method.curriculum)
        return cls(bundle.model, facts.table, specialize, np.array(facts.prior), bundle.effect)

    def regression_share(self, training: Cohort, validation: Cohort, settings: SiteSettings) -> float:
        """The share that the site's own regression deserves beside this, which knows training patients alone."""
        shared_BY = _predict(self.model, validation, self.table, self.specialize).probabilities_BY
        logits_BY = self.effect.logits(shared_BY, validation)
        return fit_share(self.model.modalities, training, validation, logits_BY, settings)

    def __call__(self, cohort: Cohort) -> Predictions:
        """Class probabilities of every patient, and their use of experts (none without a modality)."""
        seen_B = cohort.observed_BM.any(dim=1)
        patients = cohort.select(seen_B.nonzero().squeeze(1))
        seen = _predict(self.model, patients, self.table, self.specialize)
        probabilities_BY = np.tile(self.prior_Y, (len(cohort), 1))
        gates_BE = np.zeros((len(cohort), seen.gates_BE.shape[1]))
        probabilities_BY[seen_B.numpy()] = self.effect.probabilities(seen.probabilities_BY, patients)
        gates_BE[seen_B.numpy()] = seen.gates_BE
        return Predictions(probabilities_BY, gates_BE)


def predict_cohort(bundle: Bundle, cohort: Cohort) -> np.ndarray:
    """Class probabilities (B, Y) of a bundle."""
    return Predictor.of_bundle(bundle)(cohort).probabilities_BY


def label_prior(cohort: Cohort, classes: int) -> np.ndarray:
    """The share of each class (Y,); equal shares of no patients."""
    if len(cohort) == 0:
        return np.full(classes, 1.0 / classes)
    counts_Y = np.bincount(cohort.labels_B.numpy(), minlength=classes)
    prior_Y: np.ndarray = counts_Y / counts_Y.sum()
    return prior_Y


def _predict(model: FlexMoe, cohort: Cohort, table: CombinationTable, specialize: bool) -> Predictions:
    device = next(model.parameters()).device
    return predict(model, cohort.to(device), table, specialize=specialize)
