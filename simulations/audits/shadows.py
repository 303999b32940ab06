"""Shadow federations: each trained on a random half of every site's patients, and what it then says of everybody.

A shadow is a line of results.jsonl; one that has its line, with the same data and settings, is not trained again.
Shapes: B patients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from client.site_data import SiteData
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import is_specialized
from flexmoe_core.errors import CheckpointError
from flexmoe_core.evaluation import predict
from flexmoe_core.model import FlexMoe, ModalityInput, build_model, load_parameters
from flexmoe_core.naming import under_prefix
from flexmoe_core.validation import FrozenModel
from server.averaging import RoundAverage
from server.run_store import RunStore
from server.settings import RunSettings
from simulations.audits.data import AuditData, halves, trained_on, with_declared_combinations
from simulations.baselines.predictions import read_sites
from simulations.datasets.site_folders import write_site_folders
from simulations.results import RESULTS, run_kept
from simulations.runs import simulate, site_folders

SURE = 1e-12
"""Probabilities are kept this far from 0 and 1, so that their logits are finite."""


class Shadow(FrozenModel):
    """One federation to train: data and members follow from the settings' seed and its number."""

    data: AuditData
    number: int = Field(ge=0)
    settings: RunSettings


class ShadowResult(FrozenModel):
    """Of every patient, in the order of the data: whether a member, and the logit of the true class's probability."""

    shadow: Shadow
    is_member: tuple[bool, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True)
class ReleasedModel:
    """What a run ends with, as the coordinator and every hospital have it: the shared parameters, averaged."""

    model: FlexMoe
    table: CombinationTable
    specialize: bool

    @classmethod
    def of_run(cls, store: RunStore) -> ReleasedModel:
        """Encoders that never left their site are absent. Raises CheckpointError where the run has no round."""
        stored = store.last_round()
        if stored is None:
            raise CheckpointError(f"{store.folder}: this run has not come to its first round")
        arrays, facts, _ = stored
        settings, study = store.settings, store.study
        average = RoundAverage(settings.federation.averaging)
        average.load_state_arrays(under_prefix("average", arrays))
        table = CombinationTable.from_json(facts["table"])
        shared = [one for one in study.modalities if one.encoder == "shared"]
        inputs = [ModalityInput(one.name, one.kind, one.shape) for one in shared]
        classes = len(study.label.classes)
        model = build_model(study.modality_names, inputs, classes, table, settings.method.model, settings.seed)
        load_parameters(model, {name: torch.from_numpy(value) for name, value in average.mean().items()})
        return cls(model, table, is_specialized(facts["round"], settings.method.curriculum))

    def logits(self, data: SiteData) -> dict[str, float]:
        """By patient of a site: log(p / (1 - p)) of the true class's probability p."""
        logits: dict[str, float] = {}
        for split, cohort in data.cohorts.items():
            if len(cohort):
                p_BY = predict(self.model, cohort, self.table, specialize=self.specialize).probabilities_BY
                p_B = p_BY[np.arange(len(cohort)), cohort.labels_B.numpy()].clip(SURE, 1 - SURE)
                logits |= dict(zip(data.ids[split], np.log(p_B / (1 - p_B)).tolist(), strict=True))
        return logits


def shadows_of(data: AuditData, settings: RunSettings, count: int) -> list[Shadow]:
    """The shadows 0 to ``count`` - 1: more of them later begin with the same ones."""
    return [Shadow(data=data, number=number, settings=settings) for number in range(count)]


def train_shadows(out: Path, shadows: Sequence[Shadow], processes: int = 0) -> Iterator[tuple[ShadowResult, bool]]:
    """Each shadow's result as soon as it is there, and whether it is new. Stored ones come first.

    With ``processes``, that many are trained beside each other. Raises InputError, and what a run raises.
    """
    return run_kept(out / RESULTS, train_shadow, shadows, ShadowResult, lambda result: result.shadow, processes)


def train_shadow(shadow: Shadow) -> ShadowResult:
    """Write the site folders, train, and ask the released model about everybody; nothing but the result stays."""
    pooled = with_declared_combinations(shadow.data.load(shadow.settings.seed))
    is_member_B = halves(pooled.patients, shadow.settings.seed, shadow.number)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "hospitals"
        write_site_folders(folder, trained_on(pooled, is_member_B))
        store = simulate(folder, Path(scratch) / "run", shadow.settings)
        released = ReleasedModel.of_run(store)
        logits: dict[str, float] = {}
        for data in read_sites(site_folders(folder), pooled.study).values():
            logits |= released.logits(data)
    of_patients = tuple(logits[str(patient)] for patient in pooled.patients.index)
    return ShadowResult(shadow=shadow, is_member=tuple(is_member_B.tolist()), logits=of_patients)
