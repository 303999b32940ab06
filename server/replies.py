"""The answers of one training round: read, checked one by one, and sorted into updates and dropped sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexmoe_core.door import UpdateLimits, validate_reply
from flexmoe_core.errors import MessageError
from flexmoe_core.evaluation import CellResult, cells_from_arrays, total_scores
from flexmoe_core.messages import Terms, TrainReply, TrainRequest, decode
from flexmoe_core.naming import under_prefix
from flexmoe_core.score_metrics import METRICS, log_loss, summary
from flexmoe_core.scores import Scores
from flexmoe_core.update import TensorSpec, Update
from server.conversation import in_short

LONGEST_S = 1e9
PARTS = ("weighted/", "support/", "validation/")
ALL_SITES = "(all sites)"
"""In place of a site's name where only sums over all of them are known."""
Cells = dict[int | None, CellResult]


@dataclass(frozen=True)
class TrainReplies:
    """What the sites of one round said, by site. A site is either in ``updates`` or in ``dropped``, with reasons.

    Those under a privacy that withholds them have no loss, no seconds and no cells. Under masks, ``updates`` has
    names alone, and ``masked`` says of which cohort and what went wrong.
    """

    updates: dict[str, Update]
    dropped: dict[str, list[str]]
    losses: dict[str, float]
    seconds: dict[str, float]
    cells: dict[str, Cells]
    masked: dict[str, object] | None = None

    def validation(self, after_round: int) -> dict[str, Any]:
        """Validation metrics of the state that the round started from, pooled and by site."""
        named = {site: cells for site, cells in sorted(self.cells.items()) if cells and site != ALL_SITES}
        sites = {site: _described(total_scores(cells)) for site, cells in named.items()}
        pooled = self._pooled()
        return {"round": after_round, "pooled": _described(pooled) if pooled else None, "sites": sites}

    def pooled_validation(self, metric: str) -> float | None:
        """One pooled validation metric."""
        pooled = self._pooled()
        return METRICS[metric].compute(pooled) if pooled else None

    def _pooled(self) -> Scores | None:
        scores = [total_scores(cells) for _, cells in sorted(self.cells.items()) if cells]
        return sum(scores[1:], start=scores[0]) if scores else None


def _described(scores: Scores) -> dict[str, Any]:
    return {**summary(scores), "log_loss": log_loss(scores)}


def read_train_replies(
    payloads: Mapping[str, bytes], request: TrainRequest, specs: tuple[TensorSpec, ...], limits: UpdateLimits
) -> TrainReplies:
    """Check every reply by itself: a bad one costs its own site the round, and nobody else."""
    replies = TrainReplies({}, {}, {}, {}, {})
    for site, payload in sorted(payloads.items()):
        try:
            reply, arrays = decode(payload, TrainReply)
            cells = read_cells("validation", arrays, request.terms)
        except MessageError as error:
            replies.dropped[site] = [in_short(str(error))]
            continue
        update = Update(under_prefix("weighted", arrays), under_prefix("support", arrays))
        problems = [*_problems_of_facts(site, reply, arrays, request), *validate_reply(update, specs, limits)]
        if problems:
            replies.dropped[site] = problems
            continue
        replies.updates[site], replies.cells[site] = update, cells
        if reply.loss is not None:
            replies.losses[site] = reply.loss
        if reply.seconds is not None:
            replies.seconds[site] = reply.seconds
    return replies


def read_cells(split: str, arrays: Mapping[str, np.ndarray], terms: Terms) -> Cells:
    """The cells of one split in a reply's arrays; raises MessageError."""
    return cells_from_arrays(
        under_prefix(split, arrays),
        len(terms.study.label.classes),
        terms.method.model.routed_experts,
        terms.study.full_mask,
    )


def _problems_of_facts(
    site: str, reply: TrainReply, arrays: Mapping[str, np.ndarray], request: TrainRequest
) -> list[str]:
    problems = []
    if reply.site != site:
        problems.append("the reply calls itself by another site's name")
    if (reply.round, reply.attempt) != (request.round, request.attempt):
        problems.append(in_short(f"the reply is to round {reply.round}, attempt {reply.attempt}"))
    withheld = request.terms.privacy.patient is not None
    if (reply.loss is None) != withheld or not math.isfinite(reply.loss or 0.0):
        problems.append("the loss is not finite")
    if reply.seconds is not None and not 0 <= reply.seconds <= LONGEST_S:
        problems.append("the seconds are no duration")
    if not all(name.startswith(PARTS) for name in arrays):
        problems.append("the reply holds arrays that nobody asked for")
    return problems
