"""A site's answers under patient-level privacy: declared facts, and sums with noise that were paid for beforehand."""

from __future__ import annotations

import numpy as np
import torch

from client.bundle import write_bundle
from client.egress import (
    Outgoing,
    announce_declared,
    answer_masked_noised_round,
    answer_noised_round,
    answer_released_finish,
)
from client.entries import SiteManifest
from client.manifest import Manifest
from client.masking import MaskedRequest
from client.open_answers import bundle_facts
from client.prediction import Predictor, label_prior
from client.protection import Protection
from client.site_data import SiteData
from client.site_model import Arrays, local_values, site_model
from client.state import RunState
from flexmoe_core.curriculum import is_specialized
from flexmoe_core.errors import MessageError
from flexmoe_core.groups import specs_of
from flexmoe_core.messages import FinishRequest, TrainRequest
from flexmoe_core.privacy.calibration import mechanism_of
from flexmoe_core.privacy.events import Gaussian, PatientMechanism
from flexmoe_core.privacy.noised_update import noised_update
from flexmoe_core.privacy.public_facts import DeclaredFacts
from flexmoe_core.privacy.released_scores import release_scores
from flexmoe_core.privacy.settings import PatientPrivacy
from flexmoe_core.site_effect import SiteEffect

TRAINING_SPLITS = ("train",)
FINAL_SPLITS = ("train", "validation", "test")
RELEASED_SPLITS = ("validation", "test")


def announce(declared: SiteManifest[Manifest]) -> Outgoing:
    """Declared facts: no patient is read for a handshake."""
    return announce_declared(declared)


def train(
    data: SiteData,
    request: TrainRequest,
    state: Arrays,
    memory: RunState,
    device: torch.device,
    masks: MaskedRequest | None,
    protection: Protection,
) -> Outgoing:
    """Train a round by DP-SGD, which is in the ledger before it begins, and answer the noised update."""
    terms, settings = request.terms, protection.settings
    model = site_model(terms, request.table, data, state, memory.local_before(request.round), device)
    mechanism = _mechanism(data, request, settings)
    clip = memory.clip_before(request.round)
    if clip is not None and settings.quantile:
        mechanism = mechanism.model_copy(update={"clip": clip})
    protection.charge(mechanism.event)
    noised = noised_update(
        model,
        state,
        data.cohorts["train"].to(device),
        request.table,
        request.round,
        terms.method,
        mechanism,
        settings.quantile,
        declared_facts(data),
        protection.source,
        None if terms.privacy.site is None else terms.privacy.site.clip,
    )
    memory.store_local(request.round, local_values(model, terms), clip=noised.clip)
    if masks is None:
        return answer_noised_round(data.name, request, noised)
    specs = specs_of({name: model.get_parameter(name) for name in state})
    return answer_masked_noised_round(data.name, request, masks.update(noised.update, specs, protection.source))


def finish(
    data: SiteData,
    request: FinishRequest,
    state: Arrays,
    memory: RunState,
    device: torch.device,
    protection: Protection,
) -> Outgoing:
    """Write the bundle, and release the scores of validation and test patients once, with noise, or not at all."""
    terms, table = request.terms, request.table
    model = site_model(terms, table, data, state, memory.local_before(request.round + 1), device)
    specialize = is_specialized(request.round, terms.method.curriculum)
    classes = len(terms.study.label.classes)
    none = SiteEffect.of_columns(
        model.modalities, data.cohorts["train"], 1.0, torch.zeros(classes, dtype=torch.float64), None
    )
    own = Predictor(model, table, specialize, label_prior(data.cohorts["train"], classes), none)
    write_bundle(memory.folder / "bundle", model, own.effect, bundle_facts(data, request, own))
    if request.release_noise is None:
        return answer_released_finish(data.name, {})
    protection.charge(Gaussian(noise_multiplier=request.release_noise))
    # The prior of training patients would show in the scores of patients without any modality.
    blind = Predictor(model, table, specialize, np.full(classes, 1.0 / classes), none)
    released = {
        split: release_scores(
            blind(cohort).probabilities_BY, cohort.labels_B.numpy(), request.release_noise, protection.source
        )
        for split, cohort in data.cohorts.items()
        if split in RELEASED_SPLITS
    }
    return answer_released_finish(data.name, released)


def _mechanism(data: SiteData, request: TrainRequest, settings: PatientPrivacy) -> PatientMechanism:
    """With the noise that the coordinator has computed for this site."""
    if data.name not in request.noise_multipliers:
        raise MessageError("the request names no noise for this site")
    noise = request.noise_multipliers[data.name]
    return mechanism_of(settings, request.terms.method.training, data.public.patients, noise)


def declared_facts(data: SiteData) -> DeclaredFacts:
    """What the site has declared of itself."""
    return DeclaredFacts(data.public.patients, data.modalities, data.public.full_modality)
