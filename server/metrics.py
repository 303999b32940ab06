"""The results of a finished run: what metrics.json says, and what the report needs beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.errors import MessageError
from flexmoe_core.evaluation import add_cells, cells_to_arrays, total_scores
from flexmoe_core.messages import FinishReply, Terms, decode
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.privacy.released_scores import ReleasedScores
from flexmoe_core.score_metrics import summary
from flexmoe_core.scores import Scores
from server.conversation import Answers, in_short
from server.replies import ALL_SITES, Cells, read_cells

OTHER = "(other)"  # no modality can have such a name
NONE = "(none)"
SPLITS = ("validation", "test")
RELEASED = "released"


@dataclass(frozen=True)
class Results:
    """Cells by site, of validation and test patients, of the final model after ``rounds`` rounds.

    ``bundles`` has each site's bundle hash, and ``missing`` the sites without a usable answer, with the reason.
    Under patient-level privacy there are no cells and no hashes, but noised counts ``released`` by split and site.
    """

    rounds: int
    validation: dict[str, Cells]
    test: dict[str, Cells]
    bundles: dict[str, str]
    missing: dict[str, str]
    answered: list[str] = field(default_factory=list)
    released: dict[str, dict[str, ReleasedScores]] = field(default_factory=dict)

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
        arrays |= {
            name: value
            for split, sites in self.released.items()
            for site, scores in sites.items()
            for name, value in with_prefix(f"{RELEASED}/{split}/{site}", scores.to_arrays()).items()
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
            released = read_released(arrays, terms)
        except MessageError as error:
            missing[site] = in_short(str(error))
            continue
        if reply.site != site:
            missing[site] = "the reply calls itself by another site's name"
            continue
        asked = tuple(f"{split}/" for split in (*SPLITS, RELEASED))
        if not all(name.startswith(asked) for name in arrays):
            missing[site] = "the reply holds arrays that nobody asked for"
            continue
        results.answered.append(site)
        results.validation[site], results.test[site] = validation, test
        for split, scores in released.items():
            results.released.setdefault(split, {})[site] = scores
        if reply.bundle is not None:
            results.bundles[site] = reply.bundle
    return results


def read_released(arrays: Mapping[str, np.ndarray], terms: Terms) -> dict[str, ReleasedScores]:
    """The noised counts of an answer, by split; raises MessageError."""
    own = under_prefix(RELEASED, arrays)
    splits = {name.split("/", 1)[0] for name in own}
    if not splits <= set(SPLITS):
        raise MessageError("scores are released of splits that nobody asked for")
    classes = len(terms.study.label.classes)
    return {split: ReleasedScores.from_arrays(under_prefix(split, own), classes) for split in sorted(splits)}


def metrics_of(
    results: Results,
    seed: int,
    terms: Terms,
    history: Sequence[Mapping[str, Any]],
    total_seconds: float,
    privacy: Mapping[str, Any],
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
        "privacy": dict(privacy),
    } | ({"released": released_metrics(results)} if results.released else {})


def released_metrics(results: Results) -> dict[str, Any]:
    """What noised counts say of all hospitals together, by split. ``deviation`` is that of the noise of a count."""
    found = {}
    for split, sites in sorted(results.released.items()):
        first, *rest = sites.values()
        pooled = sum(rest, start=first)
        found[split] = {
            "n": round(pooled.n, 1),
            "accuracy": pooled.accuracy,
            "auroc": pooled.auroc,
            "deviation": round(pooled.deviation, 3),
        }
    return found


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
