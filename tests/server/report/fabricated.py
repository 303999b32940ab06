"""Run folders of runs that never were, with scores, coverage and history that agree with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.evaluation import CellResult, total_scores
from flexmoe_core.messages import HandshakeReply
from flexmoe_core.modalities.tabular import NumericColumn, TabularModality
from flexmoe_core.score_metrics import log_loss, summary
from flexmoe_core.scores import Scores
from flexmoe_core.study import Label, Study
from server.metrics import Cells, Results
from server.run_store import RunStore
from server.settings import settings_with
from tests.flexmoe_core.predictions import random_predictions

MODALITIES = ("history", "labs", "imaging", "genomics")
GENERALIZE_ROUNDS = 3


@dataclass(frozen=True)
class Fabrication:
    """What a made-up run is like."""

    sites: Sequence[str] = ("alder", "birch", "cedar", "dogwood")
    classes: Sequence[str] = ("absent", "present")
    modalities: Sequence[str] = MODALITIES
    masks: Sequence[int] = (0b1111, 0b0111, 0b0011, 0b1011, 0b0001)
    rounds: int = 12
    patients_per_cell: int = 40
    experts: int = 8
    seed: int = 0
    has_validation: bool = True
    lost_at_finish: Mapping[str, str] = field(default_factory=dict)
    lost_in_round_2: Mapping[str, str] = field(default_factory=dict)
    silent_in_round_3: Sequence[str] = ()


def fabricate(folder: Path, made: Fabrication | None = None) -> Path:
    """Write the run's folder, and give it."""
    made = made or Fabrication()
    generator = np.random.default_rng(made.seed)
    overrides = [f"method.model.experts={made.experts}", f"method.curriculum.generalize_rounds={GENERALIZE_ROUNDS}"]
    settings = settings_with([*overrides, f"federation.rounds={made.rounds}"], seed=made.seed)
    study = _study(made)
    store = RunStore.create(folder, study, settings)
    (folder / "run.json").write_text('{"run": "0123456789abcdef0123456789abcdef"}\n')
    own = {site: _own_masks(made, place) for place, site in enumerate(made.sites)}
    participants = {site: _reply(site, masks, made, study) for site, masks in own.items()}
    announced = {site: reply.announced for site, reply in participants.items()}
    table = CombinationTable.build(len(made.modalities), made.experts, announced, min_full=8)
    for number in range(1, made.rounds + 1):
        store.append_history(_history_row(made, own, number, generator))
    scored = [site for site in made.sites if site not in made.lost_at_finish]
    test = {site: _cells(made, own[site], table, generator, 3.0) for site in scored}
    validation = {site: _cells(made, own[site], table, generator, 1.0) for site in scored if made.has_validation}
    bundles = {site: f"{place:064x}" for place, site in enumerate(scored, start=1)}
    results = Results(made.rounds, validation, test, bundles, dict(made.lost_at_finish))
    facts = {site: reply.model_dump(mode="json") for site, reply in participants.items()}
    store.save_results(*results.to_store(facts, table))
    store.save_metrics({})
    return folder


def tiny_cell(positives: int, negatives: int, experts: int = 8) -> CellResult:
    """Some patients, all predicted right."""
    labels_B = np.repeat([1, 0], [positives, negatives])
    scores = Scores.of(np.stack([1 - labels_B, labels_B], axis=1) * 0.8 + 0.1, labels_B)
    return CellResult(scores, np.full(experts, scores.n / experts))


def _study(made: Fabrication) -> Study:
    modalities = tuple(
        TabularModality(
            name=name,
            encoder="shared",
            columns=(NumericColumn(name=f"{name}-value", range=(0.0, 1.0)),),
        )
        for name in made.modalities
    )
    return Study(name="orchard", label=Label(name="disease", classes=tuple(made.classes)), modalities=modalities)


def _own_masks(made: Fabrication, place: int) -> list[int]:
    """Every site lacks some combinations of the federation, in turn."""
    return [mask for index, mask in enumerate(made.masks) if (index + place) % 3 or index == place]


def _reply(site: str, masks: Sequence[int], made: Fabrication, study: Study) -> HandshakeReply:
    announced = dict.fromkeys(masks, 2 * made.patients_per_cell)
    observed = {
        name: sum(n for mask, n in announced.items() if mask >> m & 1) for m, name in enumerate(study.modality_names)
    }
    return HandshakeReply(
        site=site,
        declared_patients=300,
        declared_full_modality=study.full_mask in masks,
        modalities=tuple(name for name, n in observed.items() if n),
        patients={"train": sum(announced.values()), "validation": made.patients_per_cell},
        announced=announced,
        observed={name: n for name, n in observed.items() if n},
    )


def _history_row(
    made: Fabrication, own: Mapping[str, Sequence[int]], number: int, generator: np.random.Generator
) -> dict[str, Any]:
    failed = dict(made.lost_in_round_2) if number == 2 else {}
    silent = list(made.silent_in_round_3) if number == 3 else []
    answered = [site for site in made.sites if site not in failed and site not in silent]
    confidence = 0.3 + 0.7 * number / made.rounds
    scores = {site: _scores(made, made.patients_per_cell, generator, confidence) for site in answered}
    shown = scores if made.has_validation else {}
    pooled = sum(list(shown.values())[1:], start=next(iter(shown.values()))) if shown else None
    return {
        "round": number,
        "stage": "generalize" if number <= GENERALIZE_ROUNDS else "specialize",
        "aggregated": not silent,
        "answered": answered,
        "missing": silent,
        "failed": failed,
        "dropped": {},
        "refused_rows": {},
        "loss": {site: 0.4 + 0.1 * generator.random() + 1.5 / (number + len(own[site])) for site in answered},
        "validation": {
            "round": number - 1,
            "pooled": None if pooled is None else _described(pooled),
            "sites": {site: _described(one) for site, one in shown.items()},
        },
        "seconds": 2.5,
        "training_seconds": dict.fromkeys(answered, 0.5),
        "bytes_up": 40_000 * len(answered),
        "bytes_down": 50_000 * len(made.sites),
    }


def _described(scores: Scores) -> dict[str, float | int | None]:
    return {**summary(scores), "log_loss": log_loss(scores)}


def _scores(made: Fabrication, patients: int, generator: np.random.Generator, confidence: float) -> Scores:
    return Scores.of(*random_predictions(generator, patients, len(made.classes), confidence))


def _cells(
    made: Fabrication, masks: Sequence[int], table: CombinationTable, generator: np.random.Generator, share: float
) -> Cells:
    cells: Cells = {}
    for mask in masks:
        patients = round(made.patients_per_cell * share / 3) + int(generator.integers(5))
        gates_E = generator.dirichlet(np.ones(made.experts), patients).sum(axis=0) * 0.4
        gates_E[table.experts[table.masks.index(mask)]] += 0.6 * patients
        cells[mask] = CellResult(_scores(made, patients, generator, 1.0), gates_E)
    other = _scores(made, 8, generator, 1.0)
    cells[None] = CellResult(other, np.full(made.experts, other.n / made.experts))
    assert total_scores(cells).n > 0
    return cells
