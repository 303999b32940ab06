from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.state import RunState

REQUEST, ANSWER = b"request", b"answer" * 20


@pytest.fixture
def state(tmp_path: Path) -> RunState:
    return RunState(tmp_path / "state", "run")


def parameters(round_number: int) -> dict[str, np.ndarray]:
    return {"encoder": np.full(2, round_number, np.float32)}


def train(state: RunState, *rounds: int) -> None:
    for number in rounds:
        state.store_local(number, parameters(number))


def round_before(state: RunState, number: int) -> float | None:
    """The round after which the parameters were kept that the state gives."""
    found = state.local_before(number)
    return float(found["encoder"][0]) if found else None


def rounds_kept(state: RunState) -> set[str]:
    return {file.stem for file in state.folder.iterdir()}


def test_only_the_last_request_is_known(state: RunState) -> None:
    assert state.answer_to(REQUEST) is None
    state.store_answer(REQUEST, ANSWER)
    assert state.answer_to(REQUEST) == ANSWER
    assert state.answer_to(b"another") is None
    state.store_answer(b"another", b"")
    assert state.answer_to(REQUEST) is None
    assert state.answer_to(b"another") == b""


def test_another_process_knows_the_answer(state: RunState) -> None:
    state.store_answer(REQUEST, ANSWER)
    assert RunState(state.folder.parent, "run").answer_to(REQUEST) == ANSWER
    assert RunState(state.folder.parent, "other").answer_to(REQUEST) is None


def test_a_truncated_answer_is_no_answer(state: RunState) -> None:
    state.store_answer(REQUEST, ANSWER)
    (file,) = state.folder.iterdir()
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert state.answer_to(REQUEST) is None
    file.write_bytes(whole + b"x")
    assert state.answer_to(REQUEST) is None


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_damaged_answer_is_no_answer(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    state = RunState(tmp_path_factory.mktemp("state"), "run")
    state.store_answer(REQUEST, ANSWER)
    (file,) = state.folder.iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(damaged)
    assert state.answer_to(REQUEST) is None


def test_a_site_that_has_not_trained_has_no_local_parameters(state: RunState) -> None:
    assert state.local_before(1) == {}


def test_the_next_round_begins_where_the_last_one_ended(state: RunState) -> None:
    train(state, 1, 2)
    assert round_before(state, 3) == 2
    assert round_before(state, 3) == 2


def test_a_site_that_missed_rounds_goes_on_with_what_it_has(state: RunState) -> None:
    train(state, 2)
    assert round_before(state, 9) == 2


def test_parameters_roll_back_to_the_round_that_the_coordinator_names(state: RunState) -> None:
    train(state, 1, 2, 3)
    assert round_before(state, 3) == 2
    assert round_before(state, 4) == 2, "round 3 was taken back"
    train(state, 3)
    assert round_before(state, 2) == 1


def test_as_many_rounds_are_kept_as_the_coordinator_can_go_back(state: RunState) -> None:
    """It has checkpoints of two rounds, the newer of which may be damaged, and a third round under way."""
    train(state, 1, 2, 3, 4, 5)
    assert rounds_kept(state) == {"local-00003", "local-00004", "local-00005"}
    assert round_before(state, 4) == 3


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_half_written_parameters_are_passed_over(state: RunState, suffix: str) -> None:
    train(state, 1, 2)
    (state.folder / f"local-00002.{suffix}").unlink()
    assert round_before(state, 3) == 1
    train(state, 2)
    (state.folder / f"local-00002.{suffix}").write_bytes(b"{")
    assert round_before(state, 3) == 1


def test_everything_is_for_its_owner_alone(state: RunState) -> None:
    train(state, 1)
    state.store_answer(REQUEST, ANSWER)
    assert stat.S_IMODE(state.folder.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in state.folder.iterdir()}
    assert modes == dict.fromkeys(["answer.bin", "local-00001.json", "local-00001.safetensors"], 0o600)
