"""The results of a finished run: what metrics.json says, and what the report needs beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import MessageError
from flexmoe_core.evaluation import add_cells, cells_to_arrays
from flexmoe_core.messages import FinishReply, Terms, decode
from flexmoe_core.naming import with_prefix
from flexmoe_core.score_metrics import summary
from flexmoe_core.scores import Scores
from server.conversation import Answers, in_short
from server.replies import ALL_SITES, Cells, read_cells, total_scores

OTHER = "(other)"  # no modality can have such a name
NONE = "(none)"
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Results:
    """Cells by site, of validation and test patients, of the final model after ``rounds`` rounds.

    ``bundles`` has each site's bundle hash, and ``missing`` the sites without a usable answer, with the reason.
    """

    rounds: int
    validation: dict[str, Cells]
    test: dict[str, Cells]
    bundles: dict[str, str]
    missing: dict[str, str]

    def to_store(
        self, participants: Mapping[str, Any], table: CombinationTable
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays ``<split>/<site>/<combination>/<field>``, and the facts beside them."""
        arrays = {
            name: value
            for split, sites in (("validation", self.validation), ("test", self.test))
            for site, cells in sites.items()
            for name, value in with_prefix(f"{split}/{site}", cells_to_arrays(cells)).items()
        }
        facts = {
            "rounds": self.rounds,
            "participants": dict(participants),
            "table": table.to_json(),
            "bundles": self.bundles,
            "missing": self.missing,
        }
        return arrays, facts


def read_finish(answers: Answers, absent: Mapping[str, str], terms: Terms, rounds: int) -> Results:
    """Check every final answer by itself; a bad one is missing, by name and reason, as are those never asked."""
    missing = {**absent, **answers.failed, **dict.fromkeys(answers.missing, "no answer")}
    results = Results(rounds, {}, {}, {}, missing)
    for site, payload in sorted(answers.payloads.items()):
        try:
            reply, arrays = decode(payload, FinishReply)
            validation, test = (read_cells(split, arrays, terms) for split in SPLITS)
        except MessageError as error:
            missing[site] = in_short(str(error))
            continue
        if reply.site != site:
            missing[site] = "the reply calls itself by another site's name"
            continue
        if not all(name.startswith(tuple(f"{split}/" for split in SPLITS)) for name in arrays):
            missing[site] = "the reply holds arrays that nobody asked for"
            continue
        results.validation[site], results.test[site] = validation, test
        results.bundles[site] = reply.bundle
    return results


def metrics_of(
    results: Results, seed: int, terms: Terms, history: Sequence[Mapping[str, Any]], total_seconds: float
) -> dict[str, Any]:
    """What metrics.json holds."""
    earlier = sum(row["seconds"] for row in history)
    return {
        "study": terms.study.name,
        "method": "flex-moe",
        "seed": seed,
        "rounds": results.rounds,
        "test": split_metrics(results.test, terms),
        "validation": split_metrics(results.validation, terms),
        "bytes": {"up": sum(row["bytes_up"] for row in history), "down": sum(row["bytes_down"] for row in history)},
        "seconds": {
            "total": round(max(total_seconds, earlier), 3),
            "training": round(sum(sum(row["training_seconds"].values()) for row in history), 3),
        },
        "missing": results.missing,
    }


def split_metrics(sites: Mapping[str, Cells], terms: Terms) -> dict[str, Any]:
    """Summaries of the pool, of each site and of each combination."""
    pooled = pooled_cells(sites.values())
    empty = Scores.empty(len(terms.study.label.classes))
    return {
        "pooled": summary(total_scores(pooled) if pooled else empty),
        "sites": {
            site: summary(total_scores(cells) if cells else empty)
            for site, cells in sorted(sites.items())
            if site != ALL_SITES
        },
        "combinations": {
            combination_name(mask, terms): summary(cell.scores)
            for mask, cell in pooled.items()
            if ALL_SITES not in sites
        },
    }


def pooled_cells(sites: Iterable[Cells]) -> Cells:
    """All sites' cells added up, largest combination first and the merged rest last."""
    total: Cells = {}
    for cells in sites:
        total = add_cells(total, cells)
    return {mask: total[mask] for mask in sorted(total, key=_display_order)}


def combination_name(mask: int | None, terms: Terms) -> str:
    """``history+labs``; ``(other)`` for cells too small to be named, ``(none)`` where nothing was measured."""
    return OTHER if mask is None else "+".join(terms.study.names_of(mask)) or NONE


def _display_order(mask: int | None) -> tuple[int, int]:
    return (1, 0) if mask is None else (-mask.bit_count(), mask)
