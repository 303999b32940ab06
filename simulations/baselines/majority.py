"""The least that a model must beat: every hospital expects of its patients what it saw before."""

from __future__ import annotations

from collections.abc import Mapping

from client.site_data import SiteData
from flexmoe_core.study import Study
from simulations.baselines.predictions import Predictions, labels_of, predictions_for, prior_predictions


def majority_class(study: Study, sites: Mapping[str, SiteData]) -> Predictions:
    """The share of each class among a hospital's training and validation patients, for all its test patients."""
    classes = len(study.label.classes)
    return {
        name: predictions_for(
            data,
            prior_predictions(labels_of(data, ("train", "validation")), len(data.cohorts["test"]), classes),
        )
        for name, data in sites.items()
    }
