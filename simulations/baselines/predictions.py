"""What every method of a comparison gives: probabilities for the same test patients, hospital by hospital.

Shapes: B patients, Y classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.bundle import read_bundle
from client.prediction import predict_cohort
from client.site_data import SiteData, read_site
from flexmoe_core.scores import FloatArray, IntArray
from flexmoe_core.study import Study

ALL_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class SitePredictions:
    """The test patients of one hospital: their ids, labels and predicted ``probabilities_BY``, in file order."""

    ids: tuple[str, ...]
    labels_B: IntArray
    probabilities_BY: FloatArray

    def only(self, ids: Sequence[str]) -> SitePredictions:
        """Some of these patients, in this order."""
        places_B = np.array([self.ids.index(patient) for patient in ids], dtype=np.int64)
        return SitePredictions(tuple(ids), self.labels_B[places_B], self.probabilities_BY[places_B])


Predictions = Mapping[str, SitePredictions]
"""By hospital. Predictions of two methods pair up patient by patient."""


def pooled(predictions: Predictions) -> SitePredictions:
    """The test patients of all hospitals, one hospital after the other."""
    sites = predictions.values()
    return SitePredictions(
        ids=tuple(patient for site in sites for patient in site.ids),
        labels_B=np.concatenate([site.labels_B for site in sites]),
        probabilities_BY=np.concatenate([site.probabilities_BY for site in sites]),
    )


def read_sites(folders: Mapping[str, Path], study: Study) -> dict[str, SiteData]:
    """All patients of the site folders. Raises InputError."""
    return {name: read_site(folder, study, ALL_SPLITS) for name, folder in folders.items()}


def predictions_for(data: SiteData, probabilities_BY: FloatArray) -> SitePredictions:
    """Probabilities for a hospital's test patients, in file order."""
    return SitePredictions(data.ids["test"], labels_of(data, ("test",)), probabilities_BY)


def bundle_predictions(bundle: Path, data: SiteData) -> SitePredictions:
    """What the bundle of a site says of its test patients. Raises CheckpointError without a bundle."""
    return predictions_for(data, predict_cohort(read_bundle(bundle), data.cohorts["test"]))


def labels_of(data: SiteData, splits: Iterable[str]) -> IntArray:
    """(B,) labels of the patients of some splits, one split after the other."""
    return np.concatenate([data.cohorts[split].labels_B.numpy() for split in splits]).astype(np.int64)


def prior_predictions(labels_B: IntArray, patients: int, classes: int) -> FloatArray:
    """(patients, Y): for everybody the share of each class among some labels, of which there is at least one."""
    share_Y = np.bincount(labels_B, minlength=classes) / len(labels_B)
    return np.tile(share_Y, (patients, 1))


def mean_log_loss(probabilities_BY: FloatArray, labels_B: IntArray) -> float:
    """Mean of ``log_losses``."""
    return float(log_losses(probabilities_BY, labels_B).mean())


def log_losses(probabilities_BY: FloatArray, labels_B: IntArray) -> FloatArray:
    """(B,) -log p of the true class, in nats; finite also for a class thought impossible."""
    chosen_B = probabilities_BY[np.arange(len(labels_B)), labels_B]
    losses_B: FloatArray = -np.log(np.maximum(chosen_B, 1e-15))
    return losses_B
