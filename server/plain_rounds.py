"""Training rounds and the finish of a run whose coordinator sees each site's own answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.serverapp import Grid

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import RunFailed
from flexmoe_core.messages import FinishRequest, Terms, TrainRequest, encode
from flexmoe_core.update import TensorSpec
from server.aggregation import Aggregate
from server.conversation import Answers, ask
from server.identities import Identities
from server.metrics import Results, read_finish
from server.privacy import release_noise
from server.record import RunRecord
from server.replies import TrainReplies, read_train_replies
from server.settings import FederationSettings


class PlainRounds:
    """What a federation asks for where it may see what each site sends."""

    def __init__(
        self, grid: Grid, terms: Terms, federation: FederationSettings, record: RunRecord, identities: Identities
    ) -> None:
        self._grid, self._terms, self._federation = grid, terms, federation
        self._record, self._identities = record, identities
        self.needed = federation.quorum

    def begin(self, nodes: Mapping[str, int], table: CombinationTable, specs: Sequence[TensorSpec]) -> None:
        """Fix the table, and which tensors of which shapes updates have."""
        self._table, self._specs = table, tuple(specs)

    def train(
        self,
        nodes: Mapping[str, int],
        number: int,
        state: Mapping[str, np.ndarray],
        noise_multipliers: Mapping[str, float],
    ) -> tuple[TrainReplies, Answers, Aggregate | None]:
        """One round: the sites' updates, each past the door, and their mean where a quorum sent one."""
        federation = self._federation
        request = TrainRequest(
            terms=self._terms, table=self._table, round=number, noise_multipliers=dict(noise_multipliers)
        )
        payload = encode(request, state)
        self._record.asked("train", nodes, payload, number, request.attempt)
        answers = ask(self._grid, nodes, "train", payload, federation.deadline_s)
        answers = self._identities.checked("train", payload, answers)
        replies = read_train_replies(answers.payloads, request, self._specs, federation.limits)
        self._record.answered("train", answers, replies.dropped, number, request.attempt)
        if len(replies.updates) < federation.quorum:
            return replies, answers, None
        aggregator = federation.aggregation.build(self._specs)
        for site in sorted(replies.updates):
            aggregator.add(replies.updates[site])
        return replies, answers, aggregator.mean()

    def finish(
        self, nodes: Mapping[str, int], rounds: int, final: Mapping[str, np.ndarray], absent: Mapping[str, str]
    ) -> Results:
        """The final state to all sites, and the scores of each. Raises RunFailed where fewer than a quorum answer."""
        federation = self._federation
        request = FinishRequest(
            terms=self._terms, table=self._table, round=rounds, release_noise=release_noise(self._terms)
        )
        payload = encode(request, final)
        self._record.asked("finish", nodes, payload, rounds)
        answers = ask(self._grid, nodes, "evaluate", payload, federation.deadline_s)
        answers = self._identities.checked("finish", payload, answers)
        results = read_finish(answers, absent, self._terms, rounds)
        self._record.answered("finish", answers, results.missing, rounds)
        if len(results.answered) < federation.quorum:
            raise RunFailed(
                f"only {len(results.answered)} of {federation.quorum} needed sites scored the final model"
            )
        return results
