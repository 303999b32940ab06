"""Scoring patients with a bundle, whatever modalities they have.

Shapes: B patients, Y classes.
"""

from __future__ import annotations

import numpy as np
import torch

from client.bundle import Bundle
from flexmoe_core.cohort import Cohort
from flexmoe_core.curriculum import is_specialized
from flexmoe_core.evaluation import predict
from flexmoe_core.intercept import shift


def predict_cohort(bundle: Bundle, cohort: Cohort) -> np.ndarray:
    """Class probabilities (B, Y); a patient with no modality at all gets the training prior."""
    facts = bundle.facts
    probabilities_BY = np.tile(np.array(facts.prior), (len(cohort), 1))
    seen_B = cohort.observed_BM.any(dim=1)
    index_S = torch.nonzero(seen_B).squeeze(1)
    specialize = is_specialized(facts.rounds, facts.terms.method.curriculum)
    predictions = predict(bundle.model, cohort.select(index_S), facts.table, specialize=specialize)
    probabilities_BY[seen_B.numpy()] = shift(predictions.probabilities_BY, np.array(facts.intercept))
    return probabilities_BY
