"""Training rounds and the finish of a run whose sums are masked: what the sums stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import InputError, MaskingRefused, MessageError, Problem, RunFailed
from flexmoe_core.evaluation import CellResult
from flexmoe_core.masked_messages import COUNTING, CountReply, CountRequest
from flexmoe_core.messages import FinishReply, FinishRequest, Terms, TrainReply, TrainRequest
from flexmoe_core.privacy.settings import SecureAggregation
from flexmoe_core.secure_aggregation.bounds import findings_of_parameters, least_contributors
from flexmoe_core.secure_aggregation.score_blocks import score_blocks, scores_of_sum
from flexmoe_core.secure_aggregation.vector import (
    Layout,
    layout_of_rows,
    layout_of_update,
    rows_from_counts,
    sums_of_update,
)
from flexmoe_core.study import Study
from flexmoe_core.update import TensorSpec, Update
from server.aggregation import Aggregate, divide
from server.conversation import Answers
from server.masked_sums import MaskedSum, MaskedSums
from server.metrics import SPLITS, Results
from server.replies import ALL_SITES, Cells, TrainReplies
from server.run_store import RunStore
from server.settings import RunSettings

Held = dict[str, tuple[int, ...]]
NOTHING = Update({}, {})


class MaskedRounds:
    """What a federation asks for where it may see sums alone."""

    def __init__(self, sums: MaskedSums, store: RunStore, terms: Terms, quorum: int) -> None:
        self._sums, self._store, self._terms = sums, store, terms
        self.needed = max(quorum, sums.threshold)

    def begin(self, nodes: Mapping[str, int], table: CombinationTable, specs: Sequence[TensorSpec]) -> None:
        """Fix which rows are released, before any update: by a masked count, or as the study declares.

        Once per run; it is kept in the run's folder. Raises RunFailed where too few sites could be counted.
        """
        self._table, self._specs = table, tuple(specs)
        held = self._store.held_rows()
        if held is None:
            held = self._count(nodes) if self._settings.rows == "counted" else {}
            self._store.save_held_rows(held)
        self._held = held

    def train(
        self,
        nodes: Mapping[str, int],
        number: int,
        state: Mapping[str, np.ndarray],
        noise_multipliers: Mapping[str, float],
    ) -> tuple[TrainReplies, Answers, Aggregate | None]:
        """One round: who took part, and the mean update where their sum came out."""
        try:
            masking = self._sums.masking(nodes, number, self._held)
        except MaskingRefused as error:
            return TrainReplies({}, {}, {}, {}, {}, _told((), str(error))), Answers({}, {}, tuple(nodes), 0, 0), None
        request = TrainRequest(
            terms=self._terms,
            table=self._table,
            round=number,
            attempt=masking.attempt,
            masking=masking,
            noise_multipliers=dict(noise_multipliers),
        )
        layout = layout_of_update(self._specs, score_blocks(["validation"], self._classes))
        result = self._sums.take("train", nodes, request, state, TrainReply, layout, self.needed)
        aggregate, cells = self._aggregate(result)
        replies = TrainReplies(
            updates=dict.fromkeys(result.survivors, NOTHING),
            dropped=result.dropped,
            losses={},
            seconds={site: seconds for site in result.survivors if (seconds := result.replies[site].seconds)},
            cells=cells,
            masked=_told(result.cohort, result.problem),
        )
        return replies, result.answers, aggregate

    def finish(
        self, nodes: Mapping[str, int], rounds: int, final: Mapping[str, np.ndarray], absent: Mapping[str, str]
    ) -> Results:
        """The final state to all sites, and the sum of their scores. Raises RunFailed where it does not come out."""
        try:
            masking = self._sums.masking(nodes, rounds + 1, self._held)
        except MaskingRefused as error:
            raise RunFailed(f"the final model cannot be scored under masks: {error}") from None
        request = FinishRequest(terms=self._terms, table=self._table, round=rounds, masking=masking)
        layout = Layout(score_blocks(SPLITS, self._classes))
        result = self._sums.take("finish", nodes, request, final, FinishReply, layout, self.needed, goes_on=False)
        if result.blocks is None:
            raise RunFailed(f"the final model was not scored: {result.problem}")
        answers = result.answers
        unheard = dict.fromkeys(answers.missing, "no answer")
        dropped = {site: "; ".join(reasons) for site, reasons in result.dropped.items()}
        results = Results(rounds, {}, {}, {}, {**absent, **answers.failed, **unheard, **dropped})
        results.bundles.update({site: reply.bundle for site, reply in sorted(result.replies.items()) if reply.bundle})
        results.answered.extend(sorted(result.replies))
        for split, cells in (("validation", results.validation), ("test", results.test)):
            cells.update(self._cells(split, result.blocks))
        return results

    def _count(self, nodes: Mapping[str, int]) -> Held:
        try:
            masking = self._sums.masking(nodes, COUNTING)
        except MaskingRefused as error:
            raise RunFailed(f"rows cannot be counted under masks: {error}") from None
        request = CountRequest(terms=self._terms, table=self._table, masking=masking, attempt=masking.attempt)
        result = self._sums.take("count", nodes, request, None, CountReply, layout_of_rows(self._specs), self.needed)
        if result.blocks is None:
            raise RunFailed(f"rows could not be counted under masks: {result.problem}")
        least = least_contributors(self._settings, len(self._sums.roster.keys))
        released = rows_from_counts(result.blocks, least)
        return {
            name: tuple(np.flatnonzero(~rows_R).tolist()) for name, rows_R in released.items() if not rows_R.all()
        }

    def _aggregate(self, result: MaskedSum) -> tuple[Aggregate | None, dict[str, Cells]]:
        if result.blocks is None:
            return None, {}
        try:
            sums = sums_of_update(result.blocks, len(result.survivors), self._terms.limits.max_support)
            cells = self._cells("validation", result.blocks)
        except (MaskingRefused, MessageError) as error:
            result.problem = str(error)
            return None, {}
        return divide(self._specs, *sums), cells

    def _cells(self, split: str, blocks: Mapping[str, np.ndarray]) -> dict[str, Cells]:
        """The scores of all sites together; which combinations they are of, nobody knows."""
        scores = scores_of_sum(split, blocks, self._classes)
        gates_E = np.zeros(self._terms.method.model.routed_experts)
        return {} if scores is None else {ALL_SITES: {None: CellResult(scores, gates_E)}}

    @property
    def _settings(self) -> SecureAggregation:
        settings = self._terms.privacy.secure_aggregation
        assert settings is not None
        return settings

    @property
    def _classes(self) -> int:
        return len(self._terms.study.label.classes)


def require_maskable(settings: RunSettings, study: Study, sites: int, file: str) -> None:
    """Raise InputError where masks cannot protect the sums of so many sites; ``file`` is where that was set."""
    masks = settings.privacy.secure_aggregation
    if masks is None:
        return
    problems = [
        Problem(file, finding.place, finding.what, finding.remedy) for finding in findings_of_parameters(masks, sites)
    ]
    if masks.rows == "declared" and not study.combinations:
        what, remedy = "is declared, and study.toml lists no combinations", "List them, or set it to counted."
        problems.append(Problem(file, "privacy.secure_aggregation.rows", what, remedy))
    if problems:
        raise InputError(problems)


def _told(cohort: Sequence[str], problem: str | None) -> dict[str, object]:
    """What the history says of a masked sum."""
    return {"cohort": list(cohort), "problem": problem}
