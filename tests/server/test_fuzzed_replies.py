"""A thousand broken replies and a hundred broken messages: the coordinator neither stumbles nor moves by a bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from flexmoe_core.messages import TrainReply, decode
from server.run_store import RunStore
from tests.server.scripted import STUDY, handshake_reply, packed, sealed, unpacked
from tests.server.test_federation import EXPERTS, HEAD, configured, federated, moved, site

Arrays = dict[str, np.ndarray]
Site = Callable[[Message], Message | None]
LIARS, ROUNDS = 25, 40
HONEST = moved({HEAD: (0.01, [30.0]), EXPERTS: (0.01, [10.0, 10.0, 10.0])})


def break_facts(rng: np.random.Generator, facts: dict[str, Any], arrays: Arrays) -> None:
    changes: list[dict[str, Any]] = [
        {"round": facts["round"] + 1},
        {"round": -1},
        {"attempt": 7},
        {"site": "north"},
        {"site": "../north"},
        {"loss": "0.5; drop table"},
        {"loss": 1e400},
        {"seconds": -1.0},
        {"seconds": 1e300},
        {"extra": {"a": [[[[]]]]}},
    ]
    facts |= changes[rng.integers(len(changes))]


def break_arrays(rng: np.random.Generator, facts: dict[str, Any], arrays: Arrays) -> None:
    weighted, support = f"weighted/{HEAD}", f"support/{HEAD}"
    value, w_R = arrays[weighted], arrays[support]
    changes: list[Arrays] = [
        {weighted: value[..., None]},
        {weighted: value.astype(np.float64)},
        {weighted: value.astype(np.int32)},
        {weighted: np.full_like(value, np.nan)},
        {weighted: np.full_like(value, np.inf)},
        {weighted: np.full_like(value, 1e30)},
        {weighted: np.zeros((0,), np.float32)},
        {weighted: np.zeros((4096, 512), np.float32)},
        {support: -w_R},
        {support: np.zeros_like(w_R)},
        {support: w_R * 1e9},
        {support: w_R * 1e-9},
        {support: w_R.astype(np.float32)},
        {f"weighted/{HEAD}.copy": value},
        {"weighted/../../etc/passwd": value},
        {"somewhere/else": value},
        {"validation/3/nothing": value},
    ]
    arrays |= changes[rng.integers(len(changes))]


def drop_half(rng: np.random.Generator, facts: dict[str, Any], arrays: Arrays) -> None:
    del arrays[("weighted/" if rng.random() < 0.5 else "support/") + HEAD]


def fuzzed(rng: np.random.Generator, honest: bytes) -> bytes:
    """Bytes that no honest site would send, most of them sealed as if they were whole."""
    raw = rng.random()
    if raw < 0.1:
        return rng.bytes(int(rng.integers(0, 2000)))
    if raw < 0.2:
        return honest[: int(rng.integers(len(honest)))]
    if raw < 0.3:
        place, bit = int(rng.integers(len(honest))), 1 << int(rng.integers(8))
        return honest[:place] + bytes([honest[place] ^ bit]) + honest[place + 1 :]
    if raw < 0.4:
        kinds: list[Any] = [None, [], "x", {"a": 1}, json.loads("[" * 200 + "]" * 200), {"site": 1, "round": []}]
        return sealed("TrainReply", kinds[rng.integers(len(kinds))])
    reply, arrays = decode(honest, TrainReply)
    facts = reply.model_dump(mode="json")
    (break_facts, break_arrays, break_arrays, drop_half)[rng.integers(4)](rng, facts, arrays)
    return sealed("TrainReply", facts, {name: np.ascontiguousarray(value) for name, value in arrays.items()})


def mutated(rng: np.random.Generator, message: Message, honest: bytes) -> Message:
    """A Flower message of another form than a reply has."""
    text = Array.from_numpy_ndarray(np.array(["a", "b"]))
    contents: list[RecordDict] = [
        RecordDict({}),
        RecordDict({"payload": ConfigRecord({"bytes": honest})}),
        RecordDict({"payload": MetricRecord({"bytes": 1})}),
        RecordDict({"payload": ArrayRecord({})}),
        RecordDict({"payload": ArrayRecord({"bytes": text})}),
        RecordDict({"payload": ArrayRecord({"bytes": Array("float32", (9, 9), "numpy.ndarray", honest)})}),
        RecordDict({"payload": ArrayRecord({"bytes": Array("uint8", (9,), "pickle", b"cos\nsystem\n")})}),
        RecordDict({**packed(honest), "beside": ConfigRecord({"audit-count": -1, "audit-hash": "x"})}),
        RecordDict({**packed(honest), "beside": ConfigRecord({"signature": b"short"})}),
    ]
    choice = int(rng.integers(len(contents) + 1))
    if choice == len(contents):
        return Message(Error(int(rng.integers(0, 9)), "\x1b[2J" + "x" * 5000), reply_to=message)
    return Message(contents[choice], reply_to=message)


def liar(name: str, seed: int, broken_messages: int) -> Site:
    """Shakes hands as it should, and never sends anything sound again."""
    rng, train = np.random.default_rng(seed), site(name, HONEST)
    sent = 0

    def answer(message: Message) -> Message | None:
        nonlocal sent
        match message.metadata.message_type:
            case "query.handshake":
                return Message(packed(handshake_reply(name)), reply_to=message)
            case "train":
                honest, sent = unpacked(train(message)), sent + 1
                if sent <= broken_messages:
                    return mutated(rng, message, honest)
                return Message(packed(fuzzed(rng, honest)), reply_to=message)
            case _:
                return mutated(rng, message, b"nothing")

    return answer


def quiet(name: str) -> Site:
    """Shakes hands, and is never heard of again."""

    def answer(message: Message) -> Message | None:
        if message.metadata.message_type != "query.handshake":
            return None
        return Message(packed(handshake_reply(name)), reply_to=message)

    return answer


def finished(folder: Path, others: list[Site]) -> RunStore:
    settings = configured(f"federation.rounds={ROUNDS}", "federation.quorum=1")
    store = RunStore.create(folder, STUDY, settings)
    federated(store, site("north", HONEST), *others)  # type: ignore[arg-type]
    return store


def test_no_broken_reply_moves_the_model_or_ends_the_run(tmp_path: Path) -> None:
    names = [f"liar-{number}" for number in range(LIARS)]
    # four broken messages from each, then broken payloads alone: a hundred and nine hundred, and a hundred at the end
    fooled = finished(tmp_path / "fuzzed", [liar(name, seed, 4) for seed, name in enumerate(names)])
    alone = finished(tmp_path / "quiet", [quiet(name) for name in names])
    (found, facts, _), (expected, wanted, _) = fooled.last_round() or ({}, {}, []), alone.last_round() or ({}, {}, [])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert facts["aggregated"] == wanted["aggregated"] == ROUNDS
    for row in fooled.history():
        assert row["answered"] == ["north"]
        assert sorted({**row["failed"], **row["dropped"]}) == sorted(names), "every liar is named"
        told = json.dumps([row["failed"], row["dropped"]])
        assert "\\u001b" not in told and len(told) < 200_000
