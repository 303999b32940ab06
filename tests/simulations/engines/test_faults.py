from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.engines.faults import Fault, FaultPlan, corrupt
from simulations.engines.inprocess import InProcessGrid, Node
from tests.simulations.engines.toy_app import app, instruction, weights

NODES = tuple(Node(f"site-{letter}", {"site": letter, "number": i + 1}) for i, letter in enumerate("ab"))


def grid_with(folder: Path, *faults: Fault) -> InProcessGrid:
    return InProcessGrid(app, NODES, {"log": str(folder / "log")}, faults=FaultPlan(faults))


def round_of(grid: InProcessGrid, number: int = 0) -> dict[int, Message]:
    messages = [instruction(node, group=str(number)) for node in grid.get_node_ids()]
    return {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=1.0)}


def work_done(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_a_dropped_message_is_never_worked_on(tmp_path: Path) -> None:
    grid = grid_with(tmp_path, Fault("site-b", "drop", nth=1))
    assert [set(round_of(grid, number)) for number in range(3)] == [{1000, 1001}, {1000}, {1000, 1001}]
    assert work_done(tmp_path) == ["a", "b", "a", "a", "b"]


def test_a_dropped_message_has_left_the_coordinator(tmp_path: Path) -> None:
    lossy = grid_with(tmp_path, Fault("site-b", "drop"))
    sound = grid_with(tmp_path)
    round_of(lossy)
    round_of(sound)
    assert lossy.bytes_down == sound.bytes_down
    assert lossy.bytes_up < sound.bytes_up


def test_a_delayed_reply_misses_its_round_but_the_work_is_done(tmp_path: Path) -> None:
    grid = grid_with(tmp_path, Fault("site-a", "delay", nth=0))
    assert set(round_of(grid)) == {1001}
    assert work_done(tmp_path) == ["a", "b"]
    assert weights(round_of(grid)[1000])[0] == 2  # the second message that the site worked on


def test_a_delayed_reply_comes_when_asked_again(tmp_path: Path) -> None:
    grid = grid_with(tmp_path, Fault("site-a", "delay"))
    ids = list(grid.push_messages([instruction(1000)]))
    assert list(grid.pull_messages(ids)) == []
    assert [weights(reply)[0] for reply in grid.pull_messages(ids)] == [1]


def test_an_injected_error_looks_like_one_of_the_app(tmp_path: Path) -> None:
    grid = grid_with(tmp_path, Fault("site-a", "raise", nth=0))
    reply = round_of(grid)[1000]
    assert reply.error.code == 2
    assert "InjectedError" in (reply.error.reason or "")
    assert work_done(tmp_path) == ["b"]


def test_a_fault_may_depend_on_message_type_and_round(tmp_path: Path) -> None:
    fault = Fault("site-a", "drop", when=lambda kind, number: kind == "train" and number == 1)
    grid = grid_with(tmp_path, fault)
    assert [1000 in round_of(grid, number) for number in range(3)] == [True, False, True]
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1000, "query", group_id="1")])
    assert reply.has_content()
    seen: list[int | None] = []

    def see(message_type: str, number: int | None) -> bool:
        seen.append(number)
        return False

    named = grid_with(tmp_path, Fault("site-a", "drop", when=see))
    named.send_and_receive([Message(RecordDict(), 1000, "query", group_id="finish")])
    assert seen == [None]


def test_the_first_fault_of_a_plan_counts(tmp_path: Path) -> None:
    grid = grid_with(tmp_path, Fault("site-a", "raise", nth=0), Fault("site-a", "drop"))
    assert round_of(grid)[1000].has_error()
    assert 1000 not in round_of(grid)


def test_one_bit_of_the_largest_payload_flips(tmp_path: Path) -> None:
    corrupted = round_of(grid_with(tmp_path, Fault("site-a", "corrupt", bit=-2)))[1000]
    assert weights(corrupted).tolist()[:2] == [1.0, 1.0]
    # 1.0 is 0x3f800000: bit 30 of the last element takes it to infinity
    assert np.isinf(weights(corrupted)[2])


def test_a_named_payload_flips(tmp_path: Path) -> None:
    fault = Fault("site-a", "corrupt", payload="notes/blob", bit=3)
    reply = round_of(grid_with(tmp_path, fault))[1000]
    assert reply.content.config_records["notes"]["blob"] == b"\x08\x01"
    assert weights(reply).tolist() == [1.0, 1.0, 1.0]


@settings(max_examples=20, deadline=None)
@given(bit=st.integers(-16, 15))
def test_a_second_flip_undoes_the_first(bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    reply = round_of(grid_with(tmp_path_factory.mktemp("run")))[1000]
    fault = Fault("site-a", "corrupt", payload="notes/blob", bit=bit)
    record = reply.content.config_records["notes"]
    corrupt(reply, fault)
    changed = record["blob"]
    assert isinstance(changed, bytes)
    before, after = int.from_bytes(b"\x00\x01", "little"), int.from_bytes(changed, "little")
    assert before ^ after == 1 << (bit % 16)
    corrupt(reply, fault)
    assert record["blob"] == b"\x00\x01"


def test_what_cannot_be_corrupted_is_said(tmp_path: Path) -> None:
    for fault, said in (
        (Fault("site-a", "corrupt", payload="notes/nothing"), "has no 'notes/nothing'"),
        (Fault("site-a", "corrupt", payload="notes/blob", bit=16), "outside a payload of 16 bits"),
    ):
        with pytest.raises(ValueError, match=said):
            round_of(grid_with(tmp_path, fault))
    grid = grid_with(tmp_path, Fault("site-a", "corrupt"))
    with pytest.raises(ValueError, match="no array and no bytes"):
        grid.send_and_receive([Message(RecordDict(), 1000, "query")])


def test_faults_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown sites"):
        grid_with(tmp_path, Fault("site-z", "drop"))
    with pytest.raises(ValueError, match="from 0"):
        Fault("site-a", "drop", nth=-1)
    with pytest.raises(ValueError, match="no payload"):
        Fault("site-a", "drop", bit=3)
