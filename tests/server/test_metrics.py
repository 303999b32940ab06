from __future__ import annotations

import json

import numpy as np
import pytest

from flexmoe_core.evaluation import CellResult, cells_from_arrays
from flexmoe_core.messages import FinishReply, encode
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.score_metrics import summary
from flexmoe_core.scores import Scores
from server.conversation import Answers
from server.metrics import Results, combination_name, metrics_of, pooled_cells, read_finish, split_metrics
from tests.server.scripted import finish_reply, make_table, make_terms, sealed, some_cells

TERMS = make_terms()
FACTS = {"site": "north", "bundle": "b" * 64}


def cells_of(seed: int, *masks: int | None) -> dict[int | None, CellResult]:
    (cell,) = cells_from_arrays(some_cells(40, seed), 2, 3, full_mask=3).values()
    return dict.fromkeys(masks, cell)


def finished(**payloads: bytes) -> Results:
    answers = Answers(payloads, {"failing": "error 2: it broke"}, ("silent",), 0, 0)
    return read_finish(answers, {"node 14": "a second site calls itself north"}, TERMS, rounds=7)


def test_good_answers_are_read() -> None:
    both = encode(
        FinishReply(site="north", bundle="a" * 64),
        with_prefix("test", some_cells(seed=1)) | with_prefix("validation", some_cells(seed=2)),
    )
    results = finished(north=both, south=finish_reply("south"))
    assert results.bundles == {"north": "a" * 64, "south": "b" * 64}
    assert list(results.test["north"]) == list(results.validation["north"]) == [3]
    assert results.validation["south"] == {}
    assert results.rounds == 7


def test_whoever_is_missing_is_named_with_the_reason() -> None:
    assert finished().missing == {
        "node 14": "a second site calls itself north",
        "failing": "error 2: it broke",
        "silent": "no answer",
    }


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (finish_reply("south"), "another site's name"),
        (finish_reply("north")[:-1], "damaged"),
        (sealed("FinishReply", {**FACTS, "bundle": "../../x"}), "bundle"),
        (sealed("FinishReply", FACTS, {"train/3/gates": np.ones(3)}), "nobody asked for"),
        (sealed("FinishReply", FACTS, {"test/3/gates": np.ones(3)}), "confusion_YY is missing"),
        (sealed("FinishReply", FACTS, {"test/7/gates": np.ones(3)}), "no combination"),
    ],
)
def test_a_bad_answer_is_missing_and_the_others_count(payload: bytes, reason: str) -> None:
    results = finished(north=payload, south=finish_reply("south"))
    assert reason in results.missing["north"]
    assert list(results.test) == list(results.validation) == list(results.bundles) == ["south"]


def test_sites_and_combinations_add_up_to_the_pool() -> None:
    sites = {"north": cells_of(1, 3, 1), "south": cells_of(2, 1, None)}
    metrics = split_metrics(sites, TERMS)
    assert metrics["pooled"]["n"] == 160
    assert {site: one["n"] for site, one in metrics["sites"].items()} == {"north": 80, "south": 80}
    names = {name: one["n"] for name, one in metrics["combinations"].items()}
    assert list(names.items()) == [("history+labs", 40), ("history", 80), ("(other)", 40)]
    both = cells_of(1, 1)[1] + cells_of(2, 1)[1]
    assert metrics["combinations"]["history"] == summary(both.scores)


def test_nobody_at_all_is_described() -> None:
    metrics = split_metrics({"north": {}}, TERMS)
    assert metrics["pooled"] == metrics["sites"]["north"] == summary(Scores.empty(2))
    assert metrics["combinations"] == {}


def test_combinations_have_names_that_differ() -> None:
    names = [combination_name(mask, TERMS) for mask in (0, 1, 2, 3, None)]
    assert names == ["(none)", "history", "labs", "history+labs", "(other)"]


def test_the_merged_rest_comes_last() -> None:
    assert list(pooled_cells([cells_of(1, None, 2, 3, 1)])) == [3, 1, 2, None]


def test_metrics_are_json_and_count_time_and_bytes_of_earlier_parts_of_a_run() -> None:
    rows = [
        {"seconds": 4.0, "bytes_up": 10, "bytes_down": 20, "training_seconds": {"north": 1.0, "south": 2.0}},
        {"seconds": 5.0, "bytes_up": 1, "bytes_down": 2, "training_seconds": {}},
    ]
    metrics = metrics_of(finished(north=finish_reply("north")), 3, TERMS, rows, total_seconds=6.0, privacy={})
    assert metrics["bytes"] == {"up": 11, "down": 22}
    assert metrics["seconds"] == {"total": 9.0, "training": 3.0}
    assert metrics["seed"] == 3
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_what_is_stored_reads_back() -> None:
    results = finished(north=finish_reply("north"))
    arrays, facts = results.to_store({"north": {}}, make_table())
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    read = cells_from_arrays(under_prefix("test/north", arrays), 2, 3, full_mask=3)
    assert read[3].scores == results.test["north"][3].scores
    np.testing.assert_array_equal(read[3].gates_E, results.test["north"][3].gates_E)
