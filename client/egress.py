"""Everything that leaves a hospital: each answer is made here, and nowhere else.

What the functions take is the list of what may leave. Those of a run under patient-level privacy take declared facts
and noised sums; no patient, no count of patients and nothing computed from them without noise can be handed to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

import numpy as np

from client.coverage import announced_combinations, observed_patients
from client.entries import SiteManifest
from client.manifest import Manifest
from client.masking import MaskedVector
from client.site_data import SiteData
from flexmoe_core.masked_messages import CountReply, KeysReply, SharesReply, UnmaskReply
from flexmoe_core.messages import FinishReply, HandshakeReply, Terms, TrainReply, TrainRequest, encode
from flexmoe_core.naming import with_prefix
from flexmoe_core.privacy.noised_update import NoisedUpdate
from flexmoe_core.privacy.released_scores import ReleasedScores
from flexmoe_core.update import Update

Arrays = Mapping[str, np.ndarray]

Outgoing = NewType("Outgoing", bytes)
"""Bytes that may leave."""


@dataclass(frozen=True)
class RoundFacts:
    """What an open answer tells of a round beside its update."""

    loss: float
    seconds: float


def announce_counts(data: SiteData, terms: Terms) -> Outgoing:
    """Who the site is, and its training patients per combination and modality from ``min_cell`` on."""
    training = data.cohorts["train"]
    reply = HandshakeReply(
        site=data.name,
        declared_patients=data.public.patients,
        declared_full_modality=data.public.full_modality,
        modalities=data.modalities,
        patients={split: len(cohort) for split, cohort in data.cohorts.items() if len(cohort) >= terms.min_cell},
        announced=announced_combinations(training, terms.min_cell),
        observed=observed_patients(training, terms.study, terms.min_cell),
    )
    return Outgoing(encode(reply))


def announce_declared(declared: SiteManifest[Manifest]) -> Outgoing:
    """Who the site is, by its site.toml alone."""
    manifest = declared.manifest
    reply = HandshakeReply(
        site=manifest.site.name,
        declared_patients=manifest.public.patients,
        declared_full_modality=manifest.public.full_modality,
        modalities=tuple(entry.name for entry in declared.entries),
        patients={},
        announced={},
        observed={},
    )
    return Outgoing(encode(reply))


def answer_round(site: str, request: TrainRequest, update: Update, facts: RoundFacts, scored: Arrays) -> Outgoing:
    """A round's update, with its loss and the validation scores of what came in."""
    reply = TrainReply(
        site=site, round=request.round, attempt=request.attempt, loss=facts.loss, seconds=round(facts.seconds, 4)
    )
    return Outgoing(encode(reply, _update_arrays(update) | with_prefix("validation", scored)))


def answer_noised_round(site: str, request: TrainRequest, noised: NoisedUpdate) -> Outgoing:
    """A round's noised update and no more: loss, scores and even the time that it took are the patients' own."""
    reply = TrainReply(site=site, round=request.round, attempt=request.attempt)
    return Outgoing(encode(reply, _update_arrays(noised.update)))


def answer_finish(site: str, bundle: str, validation: Arrays, test: Arrays) -> Outgoing:
    """Scores per combination, and the hash that names the site's bundle."""
    scored = with_prefix("validation", validation) | with_prefix("test", test)
    return Outgoing(encode(FinishReply(site=site, bundle=bundle), scored))


def answer_released_finish(site: str, released: Mapping[str, ReleasedScores]) -> Outgoing:
    """Noised counts by split, or none; the bundle's hash would tell of the local parameters in it."""
    arrays: dict[str, np.ndarray] = {}
    for split, scores in released.items():
        arrays |= with_prefix(f"released/{split}", scores.to_arrays())
    return Outgoing(encode(FinishReply(site=site), arrays))


def answer_masked_round(site: str, request: TrainRequest, vector: MaskedVector, seconds: float | None) -> Outgoing:
    """A round's update and scores under masks, or keys alone; no loss."""
    reply = TrainReply(
        site=site,
        round=request.round,
        attempt=request.attempt,
        seconds=None if seconds is None else round(seconds, 4),
        masked=vector.masked,
    )
    return Outgoing(encode(reply, vector.arrays))


def answer_masked_noised_round(site: str, request: TrainRequest, vector: MaskedVector) -> Outgoing:
    """A round's noised update under masks, or keys alone."""
    return answer_masked_round(site, request, vector, None)


def answer_masked_finish(site: str, bundle: str, vector: MaskedVector) -> Outgoing:
    """Scores under masks, and the hash that names the site's bundle."""
    return Outgoing(encode(FinishReply(site=site, bundle=bundle, masked=vector.masked), vector.arrays))


def answer_count(site: str, vector: MaskedVector) -> Outgoing:
    """Which rows this site could train, under masks."""
    return Outgoing(encode(CountReply(site=site, masked=vector.masked), vector.arrays))


def answer_masking(reply: KeysReply | SharesReply | UnmaskReply) -> Outgoing:
    """Keys, shares and what unmasks a sum: nothing of them depends on a patient."""
    return Outgoing(encode(reply))


def answer_again(stored: bytes) -> Outgoing:
    """An answer that has left before, to the same request."""
    return Outgoing(stored)


def _update_arrays(update: Update) -> dict[str, np.ndarray]:
    return with_prefix("weighted", update.weighted) | with_prefix("support", update.support)
