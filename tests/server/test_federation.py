"""The loop from handshake to finish, with sites that answer what a test tells them to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from flexmoe_core.errors import CheckpointError, RunFailed
from flexmoe_core.messages import TrainReply, TrainRequest, decode, encode
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.update import Update
from server.federation import Federation
from server.run_store import RunStore
from server.settings import RunSettings, settings_with
from tests.server.scripted import (
    METHOD,
    STUDY,
    ScriptedGrid,
    finish_reply,
    handshake_reply,
    packed,
    some_cells,
    unpacked,
)

State = dict[str, np.ndarray]
Train = Callable[[int, State], Update]
EXPERTS = "layers.0.mixture.experts.w1"
HEAD = "head.bias"


def moved(names: Mapping[str, tuple[float, list[float]]]) -> Train:
    """Move the named tensors by a delta, under a support of so many patients per row."""

    def train(round_number: int, state: State) -> Update:
        support = {name: np.array(w_R, np.float64) for name, (_, w_R) in names.items()}
        weighted = {}
        for name, (delta, _) in names.items():
            rows = (-1, *[1] * (state[name].ndim - 1)) if len(support[name]) > 1 else (1,) * state[name].ndim
            weighted[name] = np.broadcast_to(support[name].reshape(rows) * delta, state[name].shape)
        return Update({name: value.astype(np.float32) for name, value in weighted.items()}, support)

    return train


def site(name: str, train: Train, loss: float = 0.5) -> Callable[[Message], Message]:
    def answer(message: Message) -> Message:
        match message.metadata.message_type:
            case "query.handshake":
                payload = handshake_reply(name)
            case "train":
                request, state = decode(unpacked(message), TrainRequest)
                update = train(request.round, state)
                reply = TrainReply(site=name, round=request.round, attempt=request.attempt, loss=loss, seconds=0.1)
                arrays = with_prefix("weighted", update.weighted) | with_prefix("support", update.support)
                payload = encode(reply, arrays | with_prefix("validation", some_cells()))
            case _:
                payload = finish_reply(name)
        return Message(packed(payload), reply_to=message)

    return answer


def configured(*overrides: str) -> RunSettings:
    settings = settings_with(["federation.rounds=2", "federation.averaging=0", *overrides])
    return settings.model_copy(update={"method": METHOD})


def federated(store: RunStore, *sites: Callable[[Message], Message], resume: bool = False) -> list[Mapping[str, Any]]:
    """Run a federation; gives what its observer saw."""
    seen: list[Mapping[str, Any]] = []
    grid = ScriptedGrid(dict(enumerate(sites, start=11)))
    Federation(grid, store, resume, len(sites), seen.append).run()
    return seen


def states(store: RunStore) -> tuple[State, State]:
    """The global states after the last two rounds."""
    newest = store.last_round()
    assert newest is not None
    file = store.folder / "checkpoint" / f"round-{newest[1]['round']:05d}.json"
    file.rename(file.with_suffix(".hidden"))
    older = store.last_round()
    file.with_suffix(".hidden").rename(file)
    assert older is not None
    return under_prefix("state", older[0]), under_prefix("state", newest[0])


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run", STUDY, configured())


def test_an_expert_that_one_site_sends_gets_its_delta_and_rows_without_support_keep_their_bits(
    store: RunStore,
) -> None:
    federated(
        store,
        site("north", moved({EXPERTS: (0.25, [8, 0, 0]), HEAD: (0.5, [8])})),
        site("south", moved({EXPERTS: (0.5, [0, 0, 4]), HEAD: (-1.0, [4])})),
        site("west", moved({})),
    )
    before, after = states(store)
    change_E = (after[EXPERTS].astype(np.float64) - before[EXPERTS]).reshape(3, -1)
    np.testing.assert_allclose(change_E[0], 0.25, atol=1e-6)
    np.testing.assert_allclose(change_E[2], 0.5, atol=1e-6)
    assert after[EXPERTS][1].tobytes() == before[EXPERTS][1].tobytes()
    np.testing.assert_array_equal(after[HEAD] - before[HEAD], (8 * 0.5 - 4 * 1.0) / 12)
    for name in before.keys() - {EXPERTS, HEAD}:
        assert after[name].tobytes() == before[name].tobytes()


def test_a_dropped_reply_moves_nothing_and_the_rest_goes_on(store: RunStore) -> None:
    def endless(round_number: int, state: State) -> Update:
        return moved({HEAD: (float("nan") if round_number == 2 else 1.0, [5])})(round_number, state)

    seen = federated(store, site("north", moved({HEAD: (1.0, [5])})), site("south", endless))
    assert seen[1]["answered"] == ["north"]
    assert list(seen[1]["dropped"]) == ["south"]
    before, after = states(store)
    np.testing.assert_allclose(after[HEAD] - before[HEAD], 1.0)


def test_history_checkpoints_and_metrics_are_json_without_nan(store: RunStore) -> None:
    federated(
        store, site("north", moved({HEAD: (1.0, [5])})), site("south", moved({HEAD: (1.0, [5])}), loss=float("nan"))
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    texts = [file.read_text() for file in store.folder.rglob("*.json")]
    texts += (store.folder / "history.jsonl").read_text().splitlines()
    assert len(texts) == 2 + 5
    for text in texts:
        json.loads(text, parse_constant=refuse)
    assert all("finite" in row["dropped"]["south"][0] for row in store.history())


def test_a_node_that_is_refused_is_named_at_once_and_in_the_metrics(store: RunStore) -> None:
    twins = [site("north", moved({HEAD: (1.0, [5])})) for _ in range(2)]
    seen = federated(store, *twins)
    told = {"node 12": "a second site calls itself north"}
    assert seen[0] == {"refused_nodes": told}
    assert store.metrics()["missing"] == told
    assert store.results()[1]["missing"] == told


def test_a_finished_run_that_is_resumed_asks_for_the_finish_alone(store: RunStore) -> None:
    north = site("north", moved({HEAD: (1.0, [5])}))
    federated(store, north)
    metrics, checkpoints = store.metrics(), {f: f.read_bytes() for f in (store.folder / "checkpoint").iterdir()}
    assert federated(store, north, resume=True) == []
    again = store.metrics()
    assert again["seconds"].pop("total") > 0
    metrics["seconds"].pop("total")
    assert again == metrics
    assert {f: f.read_bytes() for f in (store.folder / "checkpoint").iterdir()} == checkpoints


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_when_it_is_resumed(store: RunStore) -> None:
    federated(store, site("north", moved({HEAD: (1.0, [5])})), resume=True)
    assert store.metrics()["rounds"] == 2


def test_a_site_that_is_not_there_after_the_resumption_is_named_as_missing(store: RunStore) -> None:
    north, south = (site(name, moved({HEAD: (1.0, [5])})) for name in ("north", "south"))
    seen: list[Mapping[str, Any]] = []

    def stop(row: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Federation(ScriptedGrid({11: north, 12: south}), store, False, 2, stop).run()
    seen = federated(store, north, resume=True)
    assert [row["missing"] for row in seen] == [["south"], ["south"]]
    assert store.metrics()["missing"] == {"south": "not there when the run was resumed"}


@pytest.mark.parametrize(
    ("old", "new"), [("width = 8", "width = 16"), ("experts = 3", "experts = 4"), ('name = "avg"', 'name = "adam"')]
)
def test_a_run_whose_model_was_changed_cannot_be_resumed(store: RunStore, old: str, new: str) -> None:
    north = site("north", moved({HEAD: (1.0, [5])}))
    federated(store, north)
    config = store.folder / "config.toml"
    changed = config.read_text().replace(f"\n{old}\n", f"\n{new}\n")
    assert changed != config.read_text()
    config.write_text(changed)
    with pytest.raises(CheckpointError, match="model"):
        federated(store, north, resume=True)


def test_a_checkpoint_of_another_version_is_an_error_in_words(store: RunStore) -> None:
    north = site("north", moved({HEAD: (1.0, [5])}))
    federated(store, north)
    for file in (store.folder / "checkpoint").glob("*.json"):
        file.write_text(file.read_text().replace('"aggregated"', '"added"'))
    with pytest.raises(CheckpointError, match="another version"):
        federated(store, north, resume=True)


def test_rounds_can_be_added_to_a_finished_run(store: RunStore) -> None:
    north = site("north", moved({HEAD: (1.0, [5])}))
    federated(store, north)
    config = store.folder / "config.toml"
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 3", 1))
    assert [row["round"] for row in federated(store, north, resume=True)] == [3]
    assert store.metrics()["rounds"] == 3


def test_without_a_quorum_nothing_moves_and_the_run_fails(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", STUDY, configured("federation.quorum=2"))

    def endless(round_number: int, state: State) -> Update:
        return moved({HEAD: (float("inf"), [5])})(round_number, state)

    with pytest.raises(RunFailed, match="only 0 of 2 rounds were aggregated, 2 are needed"):
        federated(store, site("north", moved({HEAD: (1.0, [5])})), site("south", endless))
    before, after = states(store)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert not (store.folder / "metrics.json").exists()
