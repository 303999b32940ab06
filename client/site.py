"""What a hospital answers to the coordinator's three requests. No Flower here: bytes in, bytes out.

Every answer depends on the request, the site's files and the local parameters of the round before, and on
nothing else: answering twice gives the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from client.bundle import BundleFacts, write_bundle
from client.cache import load_site
from client.coverage import announced_combinations, observed_patients
from client.manifest import read_manifest
from client.masking import Masker, Membership, masker_for
from client.prediction import Predictor
from client.site_data import SiteData
from client.state import RunState
from client.trainable_rows import trainable_rows
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import is_specialized, plan_round
from flexmoe_core.errors import CheckpointError, MessageError
from flexmoe_core.evaluation import CellResult, cells_to_arrays, score_cells
from flexmoe_core.groups import Group, is_local, shared_parameters, specs_of, support_of
from flexmoe_core.messages import (
    FinishReply,
    FinishRequest,
    HandshakeReply,
    HandshakeRequest,
    Masked,
    Masking,
    Terms,
    TrainReply,
    TrainRequest,
    decode,
    encode,
)
from flexmoe_core.model import FlexMoe, ModalityInput, build_model, load_parameters
from flexmoe_core.naming import with_prefix
from flexmoe_core.scores import Scores
from flexmoe_core.training import train_round
from flexmoe_core.update import TensorSpec, build_update

Arrays = dict[str, np.ndarray]
Cells = dict[int | None, CellResult]
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Site:
    """One hospital: the folder with its site.toml, the folder for its state, and the device it computes on.

    ``membership`` is by what other sites know it, and ``sealed`` what they sealed for it beside this message.
    """

    folder: Path
    state: Path
    device: torch.device
    membership: Membership = field(default_factory=Membership)
    sealed: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As its site.toml has it. Raises InputError."""
        return read_manifest(self.folder).site.name

    def handshake(self, request_bytes: bytes) -> bytes:
        """Announce combinations and modalities of at least ``min_cell`` training patients."""
        request, _ = decode(request_bytes, HandshakeRequest)
        terms = request.terms
        data = self._read(terms, ("train", "validation"))
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
        return encode(reply)

    def train(self, request_bytes: bytes) -> bytes:
        """Score the incoming state on validation patients, train it for a round, and answer the update."""
        started = time.perf_counter()
        request, state = decode(request_bytes, TrainRequest)
        memory = RunState(self.state, request.terms.run)
        known = memory.answer_to(request_bytes)
        if known is not None:
            return known
        terms, table = request.terms, request.table
        masker = self.masker(terms)
        if masker is not None and request.masking is not None:
            if not masker.joins(request.masking, request.round):
                return self._sat_out(masker, request.masking, request)
            masker.require_held(request.masking.held)
        data = self._read(terms, ("train", "validation"))
        model = self._model(terms, table, data, state, memory.local_before(request.round))
        scored: Cells = {}
        if len(data.cohorts["validation"]):
            specialize = is_specialized(request.round - 1, terms.method.curriculum)
            predictor = Predictor.during_training(model, table, specialize, data.cohorts["train"], terms.method.site)
            scored = self._score(predictor, data.cohorts["validation"], terms)

        cohort = data.cohorts["train"].to(self.device)
        plan = plan_round(request.round, terms.method.curriculum)
        result = train_round(model, cohort, table, plan, terms.method, terms.seed, data.name, request.round)

        after = self._shared(model, terms)
        support = {name: support_of(name, result.support, model) for name in after}
        specs = specs_of({name: model.get_parameter(name) for name in after})
        update = build_update(specs, state, after, support)
        loss: float | None = result.loss
        masked: Masked | None = None
        arrays = with_prefix("weighted", update.weighted) | with_prefix("support", update.support)
        arrays |= with_prefix("validation", cells_to_arrays(scored))
        if masker is not None and request.masking is not None:
            layout, codes = masker.update_vector(update, specs, request.masking, total_scores(scored))
            loss = None
            masked, arrays = masker.masked(
                request.masking, request.round, request_bytes, layout, codes, request.round + 1
            )
        reply = TrainReply(
            site=data.name,
            round=request.round,
            attempt=request.attempt,
            loss=loss,
            seconds=round(time.perf_counter() - started, 4),
            masked=masked,
        )
        answer = encode(reply, arrays)
        memory.store_local(request.round, self._local(model, terms))
        memory.store_answer(request_bytes, answer)
        return answer

    def finish(self, request_bytes: bytes) -> bytes:
        """Score the final state on validation and, for the first time, test patients; write the bundle.

        What the site adds of its own may learn from validation patients only after they have been scored.
        """
        request, state = decode(request_bytes, FinishRequest)
        memory = RunState(self.state, request.terms.run)
        known = memory.answer_to(request_bytes)
        if known is not None:
            return known
        terms, table = request.terms, request.table
        masker = self.masker(terms)
        data = self._read(terms, ("train", "validation", "test"))
        model = self._model(terms, table, data, state, memory.local_before(request.round + 1))
        training, validation, test = (data.cohorts[split] for split in ("train", "validation", "test"))
        specialize, settings = is_specialized(request.round, terms.method.curriculum), terms.method.site
        during = Predictor.during_training(model, table, specialize, training, settings)
        share = during.regression_share(training, validation, settings)
        predictor = Predictor.final(model, table, specialize, training, validation, share, settings)
        scored = {"validation": self._score(during, validation, terms), "test": self._score(predictor, test, terms)}
        facts = BundleFacts(
            site=data.name,
            terms=terms,
            table=table,
            inputs=site_inputs(terms, data),
            prior=tuple(predictor.prior_Y.tolist()),
            rounds=request.round,
            preprocessing=dict(data.preprocessing),
        )
        digest = write_bundle(memory.folder / "bundle", model, predictor.effect, facts)
        masked: Masked | None = None
        arrays = {
            name: value
            for split, cells in scored.items()
            for name, value in with_prefix(split, cells_to_arrays(cells)).items()
        }
        if masker is not None and request.masking is not None:
            masked, arrays = self._masked_scores(masker, request, request_bytes, scored)
        answer = encode(FinishReply(site=data.name, bundle=digest, masked=masked), arrays)
        memory.store_answer(request_bytes, answer)
        return answer

    def masker(self, terms: Terms) -> Masker | None:
        """The site's part in masked sums, where the run's terms have any. Raises MaskingRefused."""
        return masker_for(self.name, RunState(self.state, terms.run), terms, self.membership, self.sealed)

    def trainable_rows(self, terms: Terms, table: CombinationTable) -> tuple[tuple[TensorSpec, ...], Rows]:
        """The shared tensors of this run, and which rows of each the site's training patients could train."""
        data = self._read(terms, ("train",))
        model = _untrained(terms, table, data)
        shared = shared_parameters(model, *_locality(terms))
        return specs_of(shared), trainable_rows(model, data.cohorts["train"], table, shared)

    def _sat_out(self, masker: Masker, masking: Masking, request: TrainRequest) -> bytes:
        """The answer in a round whose cohort is without this site: keys, to be back in the next one."""
        return encode(
            TrainReply(
                site=self.name,
                round=request.round,
                attempt=request.attempt,
                seconds=0.0,
                masked=masker.absent(masking, request.round + 1),
            )
        )

    def _masked_scores(
        self, masker: Masker, request: FinishRequest, request_bytes: bytes, scored: dict[str, Cells]
    ) -> tuple[Masked, Arrays]:
        masking, round_number = request.masking, request.round + 1
        assert masking is not None
        if not masker.joins(masking, round_number):
            return Masked(statement=None, keys=None), {}
        codes = masker.score_codes({split: total_scores(cells) for split, cells in scored.items()})
        return masker.masked(masking, round_number, request_bytes, masker.score_layout(scored), codes, None)

    def _read(self, terms: Terms, splits: Collection[str]) -> SiteData:
        return load_site(self.folder, terms.study, splits, self.state / "cache")

    def _model(self, terms: Terms, table: CombinationTable, data: SiteData, state: Arrays, local: Arrays) -> FlexMoe:
        """The model with the coordinator's shared parameters and this site's local ones."""
        model = _untrained(terms, table, data)
        expected = {name: value.shape for name, value in shared_parameters(model, *_locality(terms)).items()}
        if {name: value.shape for name, value in state.items()} != expected:
            raise MessageError("the coordinator's parameters are not those of this study's model")
        own = {name: value.shape for name, value in model.named_parameters()}
        if any(value.shape != own.get(name) for name, value in local.items()):
            raise CheckpointError(
                "the local parameters kept here are of another model: have columns of site.toml changed?"
            )
        load_parameters(model, {name: torch.from_numpy(value) for name, value in (state | local).items()})
        return model.to(self.device)

    def _score(self, predictor: Predictor, cohort: Cohort, terms: Terms) -> Cells:
        """Scores per combination."""
        if len(cohort) == 0:
            return {}
        return score_cells(predictor(cohort), cohort, terms.min_cell)

    def _shared(self, model: FlexMoe, terms: Terms) -> Arrays:
        shared = shared_parameters(model, *_locality(terms))
        return {name: value.detach().cpu().numpy() for name, value in shared.items()}

    def _local(self, model: FlexMoe, terms: Terms) -> Arrays:
        return {
            name: value.detach().cpu().numpy()
            for name, value in model.named_parameters()
            if is_local(name, *_locality(terms))
        }


def total_scores(cells: Cells) -> Scores | None:
    """The scores of all patients of some cells; None where there are none."""
    scores = [cell.scores for cell in cells.values()]
    return sum(scores[1:], start=scores[0]) if scores else None


def _untrained(terms: Terms, table: CombinationTable, data: SiteData) -> FlexMoe:
    return build_model(
        terms.study.modality_names,
        site_inputs(terms, data),
        len(terms.study.label.classes),
        table,
        terms.method.model,
        terms.seed,
    )


def site_inputs(terms: Terms, data: SiteData) -> tuple[ModalityInput, ...]:
    """What this site's model encodes: every shared modality, and the local ones that it has."""
    shapes = {one.name: one.shape for one in terms.study.modalities if one.encoder == "shared"} | data.shapes
    return tuple(
        ModalityInput(modality.name, modality.kind, shapes[modality.name])
        for modality in terms.study.modalities
        if modality.name in shapes
    )


def _locality(terms: Terms) -> tuple[tuple[str, ...], tuple[Group, ...]]:
    """Which modalities' encoders and which groups stay at the sites."""
    return terms.study.local_modalities, terms.local_groups
