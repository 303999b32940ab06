"""One job of the study at work: train, predict the test patients, attack the released model, count what it cost.

Shapes: B patients, Y classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from client.site_data import SiteData
from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.scores import FloatArray, IntArray
from flexmoe_core.validation import FrozenModel
from server.run_store import RunStore
from server.settings import RunSettings
from simulations.audits.roc import roc_of
from simulations.audits.shadows import SURE, ReleasedModel
from simulations.baselines.features import site_features
from simulations.baselines.predictions import Predictions, bundle_predictions, labels_of, predictions_for
from simulations.baselines.private_logistic import LogisticSettings, private_logistic
from simulations.runs import simulate, site_bundle
from simulations.studies.privacy_spending import spent_by
from simulations.variants import BASELINES, Hospitals

RATE = 0.1
"""The false-positive rate at which the attack is reported: with 100 non-members there is none lower."""


class Membership(FrozenModel):
    """How well a loss threshold tells training patients from those held out, by the released model alone.

    The rate is that at ``RATE`` false positives, None where these are fewer than ten patients.
    """

    members: int = Field(ge=1)
    non_members: int = Field(ge=1)
    auc: float
    true_positive_rate: float | None


@dataclass(frozen=True)
class Outcome:
    """Predictions of the test patients, the attack if there is a model to attack, and the cost.

    ``epsilon`` None: nothing is guaranteed. Bytes are those of a site and round, None without a federation.
    """

    predictions: Predictions
    seconds: float
    membership: Membership | None = None
    epsilon: float | None = None
    delta: float | None = None
    bytes_up: float | None = None
    bytes_down: float | None = None


def federated(hospitals: Hospitals, folder: Path, run_folder: Path, settings: RunSettings) -> Outcome:
    """A federation of Flex-MoE, tested with the bundle of each site. Raises what a run raises."""
    started = time.monotonic()
    store = simulate(folder, run_folder, settings)
    seconds, sites = time.monotonic() - started, hospitals.sites
    released = ReleasedModel.of_run(store)
    logits = {name: released.logits(data) for name, data in sites.items()}
    spent = spent_by(store, sites)
    up, down = _bytes(store, len(sites))
    return Outcome(
        predictions={name: bundle_predictions(site_bundle(store, name), data) for name, data in sites.items()},
        seconds=seconds,
        membership=_membership(sites, logits),
        epsilon=spent.epsilon if spent else None,
        delta=spent.delta if spent else None,
        bytes_up=up,
        bytes_down=down,
    )


def logistic(hospitals: Hospitals, settings: LogisticSettings) -> Outcome:
    """Federated logistic regression, whose sites send and receive its weights."""
    started = time.monotonic()
    fit = private_logistic(hospitals.study, hospitals.sites, settings)
    seconds, study, sites = time.monotonic() - started, hospitals.study, hospitals.sites
    logits: dict[str, dict[str, float]] = {}
    for name, data in sites.items():
        splits = ("train", "validation")
        p_BY = fit.predict(site_features(data, study, splits))
        ids = (patient for split in splits for patient in data.ids[split])
        logits[name] = dict(zip(ids, _logits(p_BY, labels_of(data, splits)).tolist(), strict=True))
    protected = settings.epsilon is not None
    return Outcome(
        predictions={
            name: predictions_for(data, fit.predict(site_features(data, study, ("test",))))
            for name, data in sites.items()
        },
        seconds=seconds,
        membership=_membership(sites, logits),
        epsilon=max(epsilon_of(one, settings.delta) for one in fit.events.values()) if protected else None,
        delta=settings.delta if protected else None,
        bytes_up=fit.bytes_per_message,
        bytes_down=fit.bytes_per_message,
    )


def reference(hospitals: Hospitals, name: str, seed: int) -> Outcome:
    """What is simpler, and sees all patients in one place: those held out too, so that there is nobody to attack."""
    started = time.monotonic()
    predictions = BASELINES[name].predict(hospitals, RunSettings(seed=seed))
    return Outcome(predictions, time.monotonic() - started)


def _membership(sites: Mapping[str, SiteData], logits: Mapping[str, Mapping[str, float]]) -> Membership | None:
    """Held-out patients were drawn by site and label like those who train; None where there are none."""
    scores, is_member = list[float](), list[bool]()
    for name, data in sites.items():
        for split in ("train", "validation"):
            scores += [logits[name][patient] for patient in data.ids[split]]
            is_member += [split == "train"] * len(data.ids[split])
    if all(is_member) or not any(is_member):
        return None
    curve = roc_of(np.array(scores), np.array(is_member))
    # Noise can make many patients equally sure; between two thresholds a coin decides, as for the area.
    rate = float(np.interp(RATE, curve.false_positive_K, curve.true_positive_K))
    return Membership(
        members=curve.members,
        non_members=curve.non_members,
        auc=curve.auc,
        true_positive_rate=rate if curve.lowest_rate <= RATE else None,
    )


def _logits(p_BY: FloatArray, labels_B: IntArray) -> FloatArray:
    """(B,) of the true class: the loss in another form."""
    p_B = p_BY[np.arange(len(labels_B)), labels_B].clip(SURE, 1 - SURE)
    logits_B: FloatArray = np.log(p_B / (1 - p_B))
    return logits_B


def _bytes(store: RunStore, sites: int) -> tuple[float, float]:
    """Up and down, mean over rounds, of each site."""
    history = store.history()
    up, down = (sum(row[key] for row in history) / len(history) / sites for key in ("bytes_up", "bytes_down"))
    return up, down
