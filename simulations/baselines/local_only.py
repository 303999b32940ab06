"""What each hospital can do alone: the better of the same network and logistic regression, tuned alike.

Both have the same number of candidates, scored by their log-loss in the same cross-validation of the hospital's
training and validation patients. The best is trained again on all of these; test patients decide nothing.
Shapes: B patients, Y classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from client.site_data import SiteData
from flexmoe_core.errors import RunFailed
from flexmoe_core.scores import IntArray
from flexmoe_core.study import Study
from server.settings import RunSettings
from simulations.baselines.features import site_features
from simulations.baselines.local_network import NetworkJob, candidates, train_alone
from simulations.baselines.logistic import held_out_logistic, logistic, stratified_folds
from simulations.baselines.predictions import (
    Predictions,
    SitePredictions,
    labels_of,
    mean_log_loss,
    predictions_for,
    prior_predictions,
)

FOLDS = 3
PENALTIES = (3.0, 10.0, 30.0, 100.0)
LEARNING_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class LocalOnly:
    """The predictions, and in words what each hospital chose."""

    predictions: Predictions
    chosen: Mapping[str, str]


@dataclass(frozen=True)
class _Hospital:
    """The patients that a hospital learns from, in the order of its splits, and the folds among them."""

    folder: Path
    data: SiteData
    labels_B: IntArray
    folds: list[IntArray]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(patient for split in LEARNING_SPLITS for patient in self.data.ids[split])

    def held_out_jobs(self, settings: RunSettings) -> Iterator[NetworkJob]:
        """One training per candidate and fold."""
        for candidate in candidates(settings):
            for held_out in self.folds:
                patients = tuple(self.ids[place] for place in held_out)
                split_of = dict.fromkeys(self.ids, "train") | dict.fromkeys(patients, "test")
                yield NetworkJob(self.folder, split_of, candidate, patients)


def local_only(
    study: Study,
    folders: Mapping[str, Path],
    sites: Mapping[str, SiteData],
    settings: RunSettings,
    processes: int = 0,
) -> LocalOnly:
    """Tune, train and predict at each hospital; a hospital that has seen but one class predicts its prior.

    With ``processes`` the networks are trained in that many spawned processes; the result is the same.
    """
    hospitals = {
        name: _hospital(folders[name], data, labels_of(data, LEARNING_SPLITS), settings.seed)
        for name, data in sites.items()
    }
    jobs = {name: list(hospital.held_out_jobs(settings)) for name, hospital in hospitals.items()}
    answers = iter(_train_all([job for each in jobs.values() for job in each], processes))
    networks = {name: [next(answers) for _ in each] for name, each in jobs.items()}
    results = {name: _best(study, hospitals[name], settings, networks[name]) for name in hospitals}
    return LocalOnly(
        {name: predicted for name, (predicted, _) in results.items()},
        {name: chosen for name, (_, chosen) in results.items()},
    )


def _hospital(folder: Path, data: SiteData, labels_B: IntArray, seed: int) -> _Hospital:
    return _Hospital(folder, data, labels_B, stratified_folds(labels_B, FOLDS, seed))


def _train_all(jobs: list[NetworkJob], processes: int) -> Iterable[SitePredictions | None]:
    if not processes or len(jobs) < 2:
        return [_train_or_none(job) for job in jobs]
    largest_first = sorted(range(len(jobs)), key=lambda place: -len(jobs[place].split_of))
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("spawn")) as pool:
        running = {place: pool.submit(_train_or_none, jobs[place]) for place in largest_first}
        return [running[place].result() for place in range(len(jobs))]


def _train_or_none(job: NetworkJob) -> SitePredictions | None:
    """None where the training diverged: such a candidate is not chosen."""
    try:
        return train_alone(job)
    except RunFailed:
        return None


def _best(
    study: Study, hospital: _Hospital, settings: RunSettings, networks: list[SitePredictions | None]
) -> tuple[SitePredictions, str]:
    """The predictions of the candidate with the least log-loss, and its name."""
    classes, data, labels_B = len(study.label.classes), hospital.data, hospital.labels_B
    x_BF, new_BF = (site_features(data, study, splits) for splits in (LEARNING_SPLITS, ("test",)))
    if len(np.unique(labels_B)) == 1:
        return predictions_for(data, prior_predictions(labels_B, len(new_BF), classes)), "prior: one class"
    if not hospital.folds:
        predicted_BY = logistic(x_BF, labels_B, new_BF, classes, max(PENALTIES))
        return predictions_for(data, predicted_BY), "logistic regression: too few patients to tune"
    losses: dict[float | int, float] = {}
    for penalty in PENALTIES:
        held_out_BY = held_out_logistic(x_BF, labels_B, classes, penalty, hospital.folds)
        losses[penalty] = mean_log_loss(held_out_BY, labels_B)
    by_candidate = np.array_split(np.arange(len(networks)), len(candidates(settings)))
    network_losses = [_held_out_loss([networks[place] for place in places]) for places in by_candidate]
    penalty, network = min(PENALTIES, key=losses.__getitem__), int(np.argmin(network_losses))
    if network_losses[network] < losses[penalty]:
        everyone = dict.fromkeys(hospital.ids, "train")
        refitted = train_alone(NetworkJob(hospital.folder, everyone, candidates(settings)[network], data.ids["test"]))
        return refitted, "network"
    return predictions_for(data, logistic(x_BF, labels_B, new_BF, classes, penalty)), "logistic regression"


def _held_out_loss(folds: list[SitePredictions | None]) -> float:
    """The mean over all patients, each predicted once; infinite where a training failed."""
    done = [fold for fold in folds if fold is not None]
    if len(done) < len(folds):
        return float("inf")
    return mean_log_loss(
        np.concatenate([fold.probabilities_BY for fold in done]), np.concatenate([fold.labels_B for fold in done])
    )
