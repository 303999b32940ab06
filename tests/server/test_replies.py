from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.door import UpdateLimits
from flexmoe_core.messages import TrainRequest
from flexmoe_core.naming import with_prefix
from flexmoe_core.update import TensorSpec
from server.replies import TrainReplies, read_train_replies
from tests.server.scripted import make_table, make_terms, sealed, some_cells

SPECS = (TensorSpec("experts", (3, 2), 3), TensorSpec("head", (2,), 1))
REQUEST = TrainRequest(terms=make_terms(), table=make_table(), round=4, attempt=2)
GOOD = {"site": "north", "round": 4, "attempt": 2, "loss": 0.5, "seconds": 1.5}
ARRAYS: Mapping[str, np.ndarray] = {
    "weighted/experts": np.array([[1, 2], [0, 0], [3, 4]], np.float32),
    "support/experts": np.array([10.0, 0.0, 5.0]),
    "weighted/head": np.ones(2, np.float32),
    "support/head": np.array([15.0]),
    **with_prefix("validation", some_cells()),
}


def reply(site: str = "north", changes: Mapping[str, np.ndarray | None] = {}, **facts: object) -> bytes:
    """A good reply but for the given facts, and for arrays that are replaced or, with None, left out."""
    arrays = {name: value for name, value in {**ARRAYS, **changes}.items() if value is not None}
    return sealed("TrainReply", GOOD | {"site": site} | facts, arrays)


def read(**payloads: bytes) -> TrainReplies:
    return read_train_replies(payloads, REQUEST, SPECS, UpdateLimits())


def test_good_replies_are_used() -> None:
    replies = read(south=reply("south"), north=reply())
    assert list(replies.updates) == ["north", "south"]
    assert replies.dropped == {}
    assert replies.losses == {"north": 0.5, "south": 0.5}
    assert replies.seconds == {"north": 1.5, "south": 1.5}
    np.testing.assert_array_equal(replies.updates["north"].weighted["experts"], ARRAYS["weighted/experts"])


def scaled(name: str, factor: float) -> dict[str, np.ndarray]:
    return {name: ARRAYS[name] * factor}


def with_value(name: str, value: float) -> dict[str, np.ndarray]:
    changed = ARRAYS[name].copy()
    changed.flat[0] = value
    return {name: changed}


BAD_FACTS: dict[str, dict[str, object]] = {
    "another site's name": {"site": "south"},
    "round 3": {"round": 3},
    "attempt 1": {"attempt": 1},
    "loss is not finite": {"loss": float("nan")},
    "the loss is not finite": {"loss": float("inf")},
    "no duration": {"seconds": float("nan")},
    "are no duration": {"seconds": -1.0},
    "the seconds are no duration": {"seconds": 1e300},
    "loss: Input should be a valid number": {"loss": "much"},
    "further: Extra inputs are not permitted": {"further": 1},
}
CONFUSION = "validation/3/confusion_YY"
BAD_ARRAYS: dict[str, Mapping[str, np.ndarray | None]] = {
    "no such shared tensor": {
        "weighted/trunk": np.ones(2, np.float32),
        "support/trunk": np.array([15.0]),
    },
    "nobody asked for": {"labels/all": np.ones(2, np.float32)},
    "arrays that nobody asked for": {"weighted": np.ones(2, np.float32)},
    "expected (2,)": {"weighted/head": np.ones((2, 1), np.float32)},
    "NaN": with_value("weighted/head", np.nan),
    "infinite": with_value("support/experts", np.inf),
    "is negative": scaled("support/head", -1.0),
    "above 100000 patients": scaled("support/head", 1e4),
    "norm": scaled("weighted/head", 1e5),
    "not zero where its support is": {"support/experts": np.array([10.0, 0.0, 0.0])},
    "must come together": {"support/head": None},
    "expected float32": {"weighted/head": np.ones(2, np.float64)},
    "confusion_YY is missing": {CONFUSION: None},
    "shape (1, 2)": {CONFUSION: np.ones((1, 2), np.int64)},
    "confusion_YY is negative": {CONFUSION: -ARRAYS[CONFUSION]},
    "count different patients": {CONFUSION: ARRAYS[CONFUSION] + 1},
    "no combination": {"validation/9/confusion_YY": ARRAYS[CONFUSION]},
    "that is no combination": {"validation/all": ARRAYS[CONFUSION]},
    "gate for each expert": {"validation/3/gates": None},
    "finite gate": {"validation/3/gates": np.full(3, np.nan)},
}


@pytest.mark.parametrize(
    ("reason", "payload"),
    [(reason, sealed("TrainReply", GOOD | facts, ARRAYS)) for reason, facts in BAD_FACTS.items()]
    + [(reason, reply(changes=changes)) for reason, changes in BAD_ARRAYS.items()]
    + [("damaged", b""), ("damaged on their way", reply()[:-1])],
)
def test_a_bad_reply_is_dropped_by_name_and_reason_and_the_others_are_used(reason: str, payload: bytes) -> None:
    replies = read(north=payload, south=reply("south"))
    assert reason in "; ".join(replies.dropped["north"])
    assert list(replies.dropped) == ["north"]
    for part in (replies.updates, replies.losses, replies.seconds, replies.cells):
        assert list(part) == ["south"]
    json.dumps(replies.dropped, allow_nan=False)
    json.dumps(replies.validation(3), allow_nan=False)


def test_every_reason_is_given() -> None:
    replies = read(north=reply("south", {**with_value("weighted/head", np.nan)}, round=9, loss=float("nan")))
    assert len(replies.dropped["north"]) == 4


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_damage_is_an_exception(data: st.DataObject) -> None:
    """Bits flipped, bytes cut off or put in; half of the time under a digest made to fit."""
    body = reply()[32:]
    start = data.draw(st.integers(0, len(body)) | st.integers(0, 600))
    end = data.draw(st.integers(start, min(len(body), start + 8)))
    damaged = body[:start] + data.draw(st.binary(max_size=8)) + body[end:]
    digest = hashlib.sha256(damaged if data.draw(st.booleans()) else body).digest()
    replies = read(north=digest + damaged, south=reply("south"))
    assert "south" in replies.updates
    assert ("north" in replies.updates) != ("north" in replies.dropped)
    json.dumps(replies.dropped, allow_nan=False)


def test_validation_is_that_of_the_sites_that_were_used() -> None:
    replies = read(
        north=reply(), south=reply("south"), west=reply("west", round=1), east=reply("east", _without_validation())
    )
    described = replies.validation(3)
    assert described["round"] == 3
    assert list(described["sites"]) == ["north", "south"]
    assert described["pooled"]["n"] == 60
    assert replies.pooled_validation("log_loss") == described["pooled"]["log_loss"] > 0


def test_without_validation_patients_there_is_no_metric() -> None:
    replies = read(north=reply(changes=_without_validation()))
    assert replies.validation(0) == {"round": 0, "pooled": None, "sites": {}}
    assert replies.pooled_validation("auroc") is None


def test_a_cell_of_nobody_has_metrics_that_are_json() -> None:
    nobody = {name: np.zeros_like(value) for name, value in ARRAYS.items() if name.startswith("validation/")}
    replies = read(north=reply(changes=nobody))
    assert replies.dropped == {}
    assert replies.pooled_validation("log_loss") is None
    json.dumps(replies.validation(3), allow_nan=False)


def _without_validation() -> dict[str, None]:
    return {name: None for name in ARRAYS if name.startswith("validation/")}
