"""A site's answers without patient-level privacy: updates, counts and scores as they are."""

from __future__ import annotations

import time

import torch

from client.bundle import BundleFacts, write_bundle
from client.egress import (
    Outgoing,
    RoundFacts,
    announce_counts,
    answer_finish,
    answer_masked_finish,
    answer_masked_round,
    answer_round,
)
from client.masking import MaskedRequest
from client.prediction import Predictor
from client.site_data import SiteData
from client.site_model import Arrays, local_values, shared_values, site_inputs, site_model
from client.state import RunState
from flexmoe_core.cohort import Cohort
from flexmoe_core.curriculum import is_specialized, plan_round
from flexmoe_core.evaluation import CellResult, cells_to_arrays, score_cells, total_scores
from flexmoe_core.groups import specs_of, support_of
from flexmoe_core.messages import FinishRequest, Terms, TrainRequest
from flexmoe_core.privacy.secret_source import SecretSource
from flexmoe_core.privacy.site_clipping import clipped_update
from flexmoe_core.scores import Scores
from flexmoe_core.training import train_round
from flexmoe_core.update import build_update

Cells = dict[int | None, CellResult]

ANNOUNCED_SPLITS = ("train", "validation")
TRAINING_SPLITS = ("train", "validation")
FINAL_SPLITS = ("train", "validation", "test")


def announce(data: SiteData, terms: Terms) -> Outgoing:
    """Combinations and modalities of at least ``min_cell`` training patients."""
    return announce_counts(data, terms)


def train(
    data: SiteData,
    request: TrainRequest,
    state: Arrays,
    memory: RunState,
    device: torch.device,
    masks: MaskedRequest | None,
    source: SecretSource,
) -> Outgoing:
    """Score the incoming state on validation patients, train it for a round, and answer the update.

    ``source`` gives the site's share of noise where site-level privacy and ``masks`` meet.
    """
    started = time.perf_counter()
    terms, table = request.terms, request.table
    model = site_model(terms, table, data, state, memory.local_before(request.round), device)
    scored: Cells = {}
    if len(data.cohorts["validation"]):
        specialize = is_specialized(request.round - 1, terms.method.curriculum)
        predictor = Predictor.during_training(model, table, specialize, data.cohorts["train"], terms.method.site)
        scored = _score(predictor, data.cohorts["validation"], terms)

    cohort = data.cohorts["train"].to(device)
    plan = plan_round(request.round, terms.method.curriculum)
    result = train_round(model, cohort, table, plan, terms.method, terms.seed, data.name, request.round)

    after = shared_values(model, terms)
    specs = specs_of({name: model.get_parameter(name) for name in after})
    site_level, seconds = terms.privacy.site, time.perf_counter() - started
    if site_level is not None:
        update = clipped_update(specs, state, after, site_level.clip)
    else:
        support = {name: support_of(name, result.support, model) for name in after}
        update = build_update(specs, state, after, support)
    memory.store_local(request.round, local_values(model, terms))
    if masks is None:
        return answer_round(data.name, request, update, RoundFacts(result.loss, seconds), cells_to_arrays(scored))
    return answer_masked_round(data.name, request, masks.update(update, specs, source, _total(scored)), seconds)


def finish(
    data: SiteData,
    request: FinishRequest,
    state: Arrays,
    memory: RunState,
    device: torch.device,
    masks: MaskedRequest | None,
) -> Outgoing:
    """Score the final state on validation and, for the first time, test patients; write the bundle.

    What the site adds of its own may learn from validation patients only after they have been scored.
    """
    terms, table = request.terms, request.table
    model = site_model(terms, table, data, state, memory.local_before(request.round + 1), device)
    training, validation, test = (data.cohorts[split] for split in FINAL_SPLITS)
    specialize, settings = is_specialized(request.round, terms.method.curriculum), terms.method.site
    during = Predictor.during_training(model, table, specialize, training, settings)
    share = during.regression_share(training, validation, settings)
    predictor = Predictor.final(model, table, specialize, training, validation, share, settings)
    validated, tested = _score(during, validation, terms), _score(predictor, test, terms)
    digest = write_bundle(memory.folder / "bundle", model, predictor.effect, bundle_facts(data, request, predictor))
    if masks is not None:
        splits = {"validation": _total(validated), "test": _total(tested)}
        return answer_masked_finish(data.name, digest, masks.scores(splits))
    return answer_finish(data.name, digest, cells_to_arrays(validated), cells_to_arrays(tested))


def bundle_facts(data: SiteData, request: FinishRequest, predictor: Predictor) -> BundleFacts:
    """What the bundle holds beside arrays."""
    return BundleFacts(
        site=data.name,
        terms=request.terms,
        table=request.table,
        inputs=site_inputs(request.terms, data),
        prior=tuple(predictor.prior_Y.tolist()),
        rounds=request.round,
        preprocessing=dict(data.preprocessing),
    )


def _score(predictor: Predictor, cohort: Cohort, terms: Terms) -> Cells:
    """Scores per combination."""
    if len(cohort) == 0:
        return {}
    return score_cells(predictor(cohort), cohort, terms.min_cell)


def _total(cells: Cells) -> Scores | None:
    """The scores of all patients; None where there are none."""
    return total_scores(cells) if cells else None
