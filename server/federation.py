"""One run of a federation: handshake, rounds, finish. The whole loop stands in ``Federation.run``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import plan_round
from flexmoe_core.errors import CheckpointError, RunFailed
from flexmoe_core.groups import shared_parameters, specs_of
from flexmoe_core.messages import Terms
from flexmoe_core.model import FlexMoe, ModalityInput, build_model
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.privacy.secret_source import OperatingSystemSource
from server.averaging import RoundAverage
from server.conversation import wait_for_nodes
from server.early_stop import EarlyStop
from server.handshake import Participants, shake_hands
from server.identities import Identities
from server.masked_rounds import MaskedRounds
from server.masked_sums import MaskedSums
from server.metrics import Results, metrics_of
from server.plain_rounds import PlainRounds
from server.privacy import mechanisms, privacy_facts
from server.record import RunRecord
from server.run_store import RunStore
from server.site_privacy import SiteLevelNoise

RoundObserver = Callable[[Mapping[str, Any]], None]
COMING_BACK_S = 90.0
"""What a node takes that was killed: Flower holds its old session for a minute."""
NOTABLE_S = 5.0


@dataclass
class Progress:
    """All that one round hands to the next, and that a checkpoint holds."""

    round: int
    aggregated: int
    state: dict[str, np.ndarray]
    history: list[dict[str, Any]]
    sites: set[str]
    stopped: bool = False

    def absent(self, sites: Participants) -> list[str]:
        """Sites that took part before the run was resumed, and are not there now."""
        return sorted(self.sites - sites.nodes.keys())


class Federation:
    """A run over the sites that a grid reaches, with its store; continues where the store's checkpoint ends."""

    def __init__(
        self, grid: Grid, store: RunStore, resume: bool, expected_sites: int, observe: RoundObserver
    ) -> None:
        self._grid, self._store, self._resume, self._observe = grid, store, resume, observe
        self._expected_sites = expected_sites
        self._record = RunRecord(store)
        self._identities = Identities(store.roster)
        self._settings = store.settings
        federation = self._settings.federation
        self._terms = Terms(
            run=store.run,
            seed=self._settings.seed,
            study=store.study,
            method=self._settings.method,
            local_groups=federation.local_groups,
            min_cell=federation.min_cell,
            rounds=federation.rounds,
            privacy=self._settings.privacy,
            limits=federation.limits,
        )
        self._is_masked = self._settings.privacy.secure_aggregation is not None
        plain = PlainRounds(grid, self._terms, federation, self._record, self._identities)
        self._rounds: PlainRounds | MaskedRounds = plain
        self._finishing: PlainRounds | MaskedRounds = plain
        if self._is_masked:
            sums = MaskedSums(grid, store, self._terms, self._record, self._identities, federation.deadline_s)
            self._rounds = MaskedRounds(sums, store, self._terms, federation.quorum)
            # Scores that sites release with noise of their own need no masks.
            self._finishing = self._rounds if self._settings.privacy.patient is None else plain
        self._average = RoundAverage(federation.averaging)
        self._early_stop = EarlyStop(federation.early_stop)
        site_level = self._settings.privacy.site
        self._site_level = None
        if site_level is not None:
            self._site_level = SiteLevelNoise(site_level, federation.rounds, OperatingSystemSource())

    def run(self) -> None:
        """Raises RunFailed without a quorum or with too few rounds, AuditError when nothing can be recorded."""
        with self._record.of_run(self._resume):
            self._run()

    def _run(self) -> None:
        started = time.monotonic()
        federation = self._settings.federation
        sites = shake_hands(
            self._grid,
            self._terms,
            federation.quorum,
            self._expected_sites,
            federation.deadline_s,
            self._record,
            self._identities,
        )
        if sites.refused:
            self._observe({"refused_nodes": sites.refused})
        self._mechanisms = mechanisms(self._terms, sites.replies)
        progress = self._start(sites)
        for rounds in dict.fromkeys((self._rounds, self._finishing)):
            rounds.begin(sites.nodes, self._table, self._specs)
        while progress.round < federation.rounds and not progress.stopped:
            self._train_round(sites, progress)
            self._save(progress)
        self._require_enough(progress.aggregated, progress.round)
        results = self._finish(sites, progress)
        self._store.save_results(*results.to_store(sites.facts(), self._table))
        seconds = time.monotonic() - started
        cost = self._privacy(progress, results)
        self._store.save_metrics(
            metrics_of(results, self._settings.seed, self._terms, self._store.history(), seconds, cost)
        )

    def _privacy(self, progress: Progress, results: Results) -> dict[str, Any]:
        answered = [site for row in progress.history for site in row["answered"]]
        return privacy_facts(
            self._terms, self._mechanisms, answered, results.answered, self._site_level, progress.aggregated
        )

    def _start(self, sites: Participants) -> Progress:
        """The state before the first round, or that of the last checkpoint."""
        stored = self._store.last_round() if self._resume else None
        if stored is None:
            state = self._prepare(sites.table(self._terms))
            progress = Progress(round=0, aggregated=0, state=state, history=[], sites=set(sites.nodes))
            self._save(progress)
            return progress
        arrays, facts, refused = stored
        for reason in refused:
            self._observe({"refused_checkpoint": reason})
        try:
            progress = self._restore(arrays, facts)
        except (LookupError, TypeError, ValueError) as error:
            what = f"of another version, or changed by hand ({type(error).__name__})"
            raise CheckpointError(f"{self._store.folder / 'checkpoint'}: {what}") from None
        progress.sites.update(sites.nodes)
        self._store.rewind_history(progress.round)
        return progress

    def _prepare(self, table: CombinationTable) -> dict[str, np.ndarray]:
        """Fix the table and all that follows from it, and give the state that a run starts from."""
        self._table = table
        model = initial_model(self._terms, table)
        shared = shared_parameters(model, self._terms.study.local_modalities, self._terms.local_groups)
        self._specs = specs_of(shared)
        self._optimizer = self._settings.federation.optimizer.build(self._specs)
        return {name: value.detach().numpy().copy() for name, value in shared.items()}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Progress:
        initial = self._prepare(CombinationTable.from_json(facts["table"]))
        state = under_prefix("state", arrays)
        if {name: value.shape for name, value in state.items()} != {name: v.shape for name, v in initial.items()}:
            folder = self._store.folder
            raise CheckpointError(f"{folder / 'checkpoint'}: the model is not that of {folder / 'config.toml'}")
        self._optimizer.load_state_arrays(under_prefix("optimizer", arrays))
        self._average.load_state_arrays(under_prefix("average", arrays))
        self._early_stop.load_state(facts["early_stop"])
        return Progress(
            round=facts["round"],
            aggregated=facts["aggregated"],
            state=state,
            history=facts["history"],
            sites=set(facts["sites"]),
            stopped=facts["stopped"],
        )

    def _train_round(self, sites: Participants, progress: Progress) -> None:
        started = time.monotonic()
        federation, number = self._settings.federation, progress.round + 1
        self._wait(sites, self._rounds.needed, federation.deadline_s)
        replies, answers, aggregate = self._rounds.train(sites.nodes, number, progress.state, self._noise_multipliers)
        aggregated = aggregate is not None
        refused_rows: dict[str, tuple[int, ...]] = {}
        if aggregate is not None:
            if self._site_level is not None:
                aggregate = self._site_level.protect(aggregate, noised_by_sites=self._is_masked)
            refused_rows = aggregate.refused
            progress.state = self._optimizer.step(progress.state, aggregate)
            self._average.add(progress.state)
        progress.round, progress.aggregated = number, progress.aggregated + aggregated
        row = {
            "round": number,
            "stage": plan_round(number, self._settings.method.curriculum).stage.value,
            "aggregated": aggregated,
            "answered": sorted(replies.updates),
            "missing": sorted([*answers.missing, *progress.absent(sites)]),
            "failed": dict(sorted(answers.failed.items())),
            "dropped": dict(sorted(replies.dropped.items())),
            "refused_rows": refused_rows,
            "loss": dict(sorted(replies.losses.items())),
            "validation": replies.validation(number - 1),
            **({} if replies.masked is None else {"masked": replies.masked}),
        }
        progress.history.append(row)
        progress.stopped = self._early_stop.should_stop(
            replies.pooled_validation(federation.early_stop.metric) if replies.cells else None
        )
        timed = row | {
            "seconds": round(time.monotonic() - started, 4),
            "training_seconds": dict(sorted(replies.seconds.items())),
            "bytes_up": answers.bytes_up,
            "bytes_down": answers.bytes_down,
        }
        self._store.append_history(timed)
        self._observe(timed)

    @property
    def _noise_multipliers(self) -> dict[str, float]:
        """Of each site under patient-level privacy; empty without."""
        return {site: one.noise_multiplier for site, one in self._mechanisms.items()}

    def _wait(self, sites: Participants, needed: int, patience_s: float) -> None:
        online, seconds = wait_for_nodes(self._grid, sites.nodes.values(), needed, patience_s)
        if seconds > NOTABLE_S:
            self._observe({"waited_s": round(seconds, 1), "online": online, "needed": needed})

    def _save(self, progress: Progress) -> None:
        arrays = (
            with_prefix("state", progress.state)
            | with_prefix("optimizer", self._optimizer.state_arrays())
            | with_prefix("average", self._average.state_arrays())
        )
        facts = {
            "round": progress.round,
            "aggregated": progress.aggregated,
            "stopped": progress.stopped,
            "sites": sorted(progress.sites),
            "table": self._table.to_json(),
            "early_stop": self._early_stop.state(),
            "history": progress.history,
        }
        self._record.checkpoint(progress.round, self._store.save_round(progress.round, arrays, facts))

    def _require_enough(self, aggregated: int, rounds: int) -> None:
        needed = math.ceil(self._settings.federation.min_aggregated * rounds)
        if aggregated < max(needed, 1):
            raise RunFailed(
                f"only {aggregated} of {rounds} rounds were aggregated, {needed} are needed; "
                f"{self._store.folder / 'history.jsonl'} names the sites that were missing"
            )

    def _finish(self, sites: Participants, progress: Progress) -> Results:
        federation = self._settings.federation
        final = self._average.mean()
        absent = dict.fromkeys(progress.absent(sites), "not there when the run was resumed")
        # a hospital that is just coming back would go without the model
        self._wait(sites, len(sites.nodes), min(COMING_BACK_S, federation.deadline_s))
        return self._finishing.finish(sites.nodes, progress.round, final, sites.refused | absent)


def initial_model(terms: Terms, table: CombinationTable) -> FlexMoe:
    """The model that a run starts from, without the encoders that only sites have."""
    study = terms.study
    shared = [modality for modality in study.modalities if modality.encoder == "shared"]
    inputs = [ModalityInput(modality.name, modality.kind, modality.shape) for modality in shared]
    return build_model(study.modality_names, inputs, len(study.label.classes), table, terms.method.model, terms.seed)
