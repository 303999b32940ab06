"""A finished run as the report sees it: the store's files, checked and typed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import Stage
from flexmoe_core.errors import CheckpointError
from flexmoe_core.evaluation import cells_from_arrays, total_scores
from flexmoe_core.messages import HandshakeReply, Table
from flexmoe_core.naming import under_prefix
from flexmoe_core.scores import Scores
from flexmoe_core.study import Study
from flexmoe_core.validation import FrozenModel, validate
from server.metrics import pooled_cells
from server.replies import ALL_SITES, Cells
from server.run_store import RunStore
from server.settings import RunSettings

Metrics = dict[str, float | None]


class RoundValidation(FrozenModel):
    """Validation metrics of the state after ``round`` rounds."""

    round: int
    pooled: Metrics | None
    sites: dict[str, Metrics]


class Round(FrozenModel, extra="ignore"):
    """One line of history.jsonl."""

    round: int
    stage: Stage
    aggregated: bool
    answered: tuple[str, ...]
    missing: tuple[str, ...]
    failed: dict[str, str]
    dropped: dict[str, tuple[str, ...]]
    loss: dict[str, float]
    validation: RoundValidation
    seconds: float
    training_seconds: dict[str, float]
    bytes_up: int
    bytes_down: int


class ResultFacts(FrozenModel, extra="ignore", arbitrary_types_allowed=True):
    """The facts beside the results' arrays."""

    rounds: int
    participants: dict[str, HandshakeReply]
    table: Table
    bundles: dict[str, str]
    missing: dict[str, str]


@dataclass(frozen=True)
class FinishedRun:
    """Everything that the page shows. ``hashes`` are the SHA-256 of the run's own text files.

    ``privacy`` is what protections cost, ``released`` the noised results, as metrics.json has them.
    """

    name: str
    study: Study
    settings: RunSettings
    history: tuple[Round, ...]
    facts: ResultFacts
    validation: Mapping[str, Cells]
    test: Mapping[str, Cells]
    hashes: Mapping[str, str]
    privacy: Mapping[str, Any] = field(default_factory=dict)
    released: Mapping[str, Any] = field(default_factory=dict)

    @property
    def withholds(self) -> bool:
        """Whether patient-level privacy keeps counts and results at the hospitals."""
        return self.settings.privacy.patient is not None

    @property
    def table(self) -> CombinationTable:
        """The combinations of the federation and their experts."""
        return self.facts.table

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Everybody who took part, in order of name."""
        return tuple(sorted({*self.facts.participants, *self.facts.bundles, *self.facts.missing}))

    @cached_property
    def test_combinations(self) -> Cells:
        """Pooled test results by combination, largest combination first and merged small cells last.

        Masked sums have none: nobody knows which combinations they are of.
        """
        return {} if ALL_SITES in self.test else pooled_cells(self.test.values())

    def site_scores(self, site: str) -> Scores:
        """Test scores of one site; empty where it has none."""
        return self._sum(self.test.get(site, {}))

    def pooled(self, split: Mapping[str, Cells]) -> Scores:
        """Scores of all sites' patients of ``validation`` or ``test``."""
        return self._sum(pooled_cells(split.values()))

    @cached_property
    def training_patients(self) -> int:
        """Training patients of all sites that announced their number."""
        return sum(reply.patients.get("train", 0) for reply in self.facts.participants.values())

    def _sum(self, cells: Cells) -> Scores:
        return total_scores(cells) if cells else Scores.empty(len(self.study.label.classes))


def read_run(folder: Path) -> FinishedRun:
    """Read a run folder. Raises InputError, CheckpointError or MessageError where it holds no finished run."""
    store = RunStore.open(folder)
    study, settings = store.study, store.settings
    if not (folder / "results.json").is_file():
        raise CheckpointError(f"{folder}: the run has not finished; resume it first")
    arrays, raw_facts = store.results()
    facts = validate(raw_facts, ResultFacts, str(folder / "results.json"))
    history = [validate(row, Round, str(folder / "history.jsonl")) for row in store.history()]

    def cells(split: str) -> dict[str, Cells]:
        names = [*sorted(facts.bundles), *([] if settings.privacy.secure_aggregation is None else [ALL_SITES])]
        return {site: _cells(f"{split}/{site}", arrays, study, settings) for site in names}

    metrics = store.metrics()
    return FinishedRun(
        name=store.run,
        study=study,
        settings=settings,
        history=tuple(history),
        facts=facts,
        validation=cells("validation"),
        test=cells("test"),
        hashes={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _TEXT_FILES},
        privacy=metrics.get("privacy", {}),
        released=metrics.get("released", {}),
    )


_TEXT_FILES = ("study.toml", "config.toml", "history.jsonl")


def _cells(prefix: str, arrays: Mapping[str, np.ndarray], study: Study, settings: RunSettings) -> Cells:
    experts = settings.method.model.routed_experts
    return cells_from_arrays(under_prefix(prefix, arrays), len(study.label.classes), experts, study.full_mask)
