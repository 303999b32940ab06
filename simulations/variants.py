"""What the federation is compared with: its own variants, and what a user would pick instead.

A variant is the same federation with one part of the method replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.site_data import SiteData
from flexmoe_core.settings import MethodSettings
from flexmoe_core.study import Study
from server.settings import RunSettings
from simulations.baselines.local_only import local_only
from simulations.baselines.logistic import pooled_logistic
from simulations.baselines.majority import majority_class
from simulations.baselines.predictions import Predictions

MODALITY_DROPOUT = 0.2


@dataclass(frozen=True)
class Variant:
    """A federation whose method is changed; with ``fills_means`` its patients' missing modalities are mean-filled."""

    title: str
    change: Callable[[MethodSettings], MethodSettings]
    fills_means: bool = False


@dataclass(frozen=True)
class Hospitals:
    """A study and the patients of its hospitals, by name, as files and as tensors."""

    study: Study
    folders: Mapping[str, Path]
    sites: Mapping[str, SiteData]


@dataclass(frozen=True)
class Baseline:
    """Predictions without a federation; ``trains_model`` if hospitals train our network with the settings' sizes."""

    title: str
    predict: Callable[[Hospitals, RunSettings], Predictions]
    trains_model: bool = False


def _model(**changes: object) -> Callable[[MethodSettings], MethodSettings]:
    return lambda method: method.model_copy(update={"model": method.model.model_copy(update=changes)})


def _as_many_parameters(method: MethodSettings) -> MethodSettings:
    """A dense layer of the width of all experts together."""
    return _model(feed_forward="dense", active_experts=method.model.experts)(method)


def _without_generalizing(method: MethodSettings) -> MethodSettings:
    return method.model_copy(update={"curriculum": method.curriculum.model_copy(update={"generalize_rounds": 0})})


def _switching_modality_dropout(method: MethodSettings) -> MethodSettings:
    """On where the settings have none, off where they have any."""
    chance = 0.0 if method.training.modality_dropout > 0 else MODALITY_DROPOUT
    training = method.training.model_copy(update={"modality_dropout": chance})
    return method.model_copy(update={"training": training})


def _as_it_is(method: MethodSettings) -> MethodSettings:
    return method


def _local_only(hospitals: Hospitals, settings: RunSettings) -> Predictions:
    return local_only(hospitals.study, hospitals.folders, hospitals.sites, settings).predictions


def _pooled_logistic(hospitals: Hospitals, settings: RunSettings) -> Predictions:
    return pooled_logistic(hospitals.study, hospitals.sites, settings.seed)


def _majority(hospitals: Hospitals, settings: RunSettings) -> Predictions:
    return majority_class(hospitals.study, hospitals.sites)


FLEX_MOE = "flex-moe"
VARIANTS: Mapping[str, Variant] = {
    FLEX_MOE: Variant("federated Flex-MoE", _as_it_is),
    "dense": Variant("dense, as many multiply-adds", _model(feed_forward="dense")),
    "dense-wide": Variant("dense, as many parameters", _as_many_parameters),
    "single-expert": Variant("single expert", _model(experts=1, active_experts=1)),
    "stage-0": Variant("no generalize stage", _without_generalizing),
    "learned": Variant("learned specialization", _model(specialization="learned")),
    "zero-fill": Variant("zero-fill", _model(bank="zero")),
    "mean-fill": Variant("mean-fill", _as_it_is, fills_means=True),
    "modality-dropout": Variant("modality dropout on/off", _switching_modality_dropout),
}
"""By name, the federation itself first."""

LOCAL_ONLY = "local-only"
BASELINES: Mapping[str, Baseline] = {
    LOCAL_ONLY: Baseline("local only", _local_only, trains_model=True),
    "pooled-logistic": Baseline("pooled logistic regression", _pooled_logistic),
    "majority": Baseline("majority class", _majority),
}
"""By name."""


def title_of(method: str) -> str:
    """What a table calls a variant or baseline."""
    return VARIANTS[method].title if method in VARIANTS else BASELINES[method].title
