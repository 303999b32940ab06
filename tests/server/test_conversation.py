from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, Error, Message, RecordDict
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.attachments import RECORD, Attachments
from flexmoe_core.audit_line import Head
from server.conversation import Answers, ask, in_short, wait_for_nodes
from tests.server.scripted import Answer, ScriptedGrid, packed, says, silent

NORTH, SOUTH = 11, 12
NODES = {"north": NORTH, "south": SOUTH}


def asked(north: Answer, south: Answer, payload: bytes = b"question") -> Answers:
    return ask(ScriptedGrid({NORTH: north, SOUTH: south}), NODES, "train", payload, deadline_s=7.0)


def holding(content: RecordDict) -> Answer:
    return lambda message: Message(content, reply_to=message)


def test_everybody_gets_the_question_and_is_heard() -> None:
    grid = ScriptedGrid({NORTH: says(b"yes"), SOUTH: says(b"")})
    answers = ask(grid, NODES, "evaluate", b"question", deadline_s=7.0)
    nothing = {"north": Attachments(), "south": Attachments()}
    assert answers == Answers({"north": b"yes", "south": b""}, {}, (), bytes_up=3, bytes_down=16, beside=nothing)
    assert [message.metadata.dst_node_id for message in grid.asked] == [NORTH, SOUTH]
    assert all(message.content == packed(b"question") for message in grid.asked)
    assert {(m.metadata.message_type, m.metadata.ttl) for m in grid.asked} == {("evaluate", 7.0)}


def test_the_error_of_a_lost_node_is_that_of_the_site_and_not_of_the_superlink() -> None:
    def lost(message: Message) -> Message:
        reply = create_message_error_unavailable_res_message(message.metadata, "node_unavail")
        assert reply.metadata.src_node_id == 1
        return reply

    answers = asked(says(b"yes"), lost)
    assert answers.payloads == {"north": b"yes"}
    assert list(answers.failed) == ["south"]
    assert answers.failed["south"].startswith("error 5: ")
    assert answers.missing == ()


def test_nobody_answers() -> None:
    assert asked(silent, silent) == Answers({}, {}, ("north", "south"), bytes_up=0, bytes_down=16)


def test_nobody_is_asked() -> None:
    assert ask(ScriptedGrid({}), {}, "train", b"question", 1.0) == Answers({}, {}, (), 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"payload": ConfigRecord({"bytes": b"yes"})}),
        RecordDict({"payload": ArrayRecord({"other": Array(np.zeros(2, np.uint8))})}),
        RecordDict({"payload": ArrayRecord({"bytes": Array(np.zeros(2, np.float32))})}),
        RecordDict({"payload": ArrayRecord({"bytes": Array("uint8", (2,), "torch", b"yes")})}),
        RecordDict({"payload": ArrayRecord({"bytes": Array("uint8", (2,), "numpy.ndarray", b"")})}),
        RecordDict({"payload": ArrayRecord({"bytes": Array("uint8", (2,), "numpy.ndarray", b"PK\x03\x04")})}),
    ],
    ids=["empty", "other record", "other name", "other dtype", "other framework", "no bytes", "an archive"],
)
def test_a_reply_without_payload_is_a_failure_of_its_site_alone(content: RecordDict) -> None:
    answers = asked(holding(content), says(b"yes"))
    assert answers.payloads == {"south": b"yes"}
    assert answers.failed == {"north": "the reply holds no payload"}
    assert answers.missing == ()


def beside(values: dict[str, ConfigRecordValues]) -> RecordDict:
    content = packed(b"yes")
    content[RECORD] = ConfigRecord(values)
    return content


def test_what_travels_beside_a_payload_is_given_and_no_part_of_it() -> None:
    attached = Attachments(audit_head=Head(7, "ab" * 32))
    answers = asked(holding(beside(dict(attached.to_values()))), holding(beside({})))
    assert answers.payloads == {"north": b"yes", "south": b"yes"}
    assert answers.beside == {"north": attached, "south": Attachments()}


@pytest.mark.parametrize(
    "values",
    [
        {"audit-count": 1},
        {"audit-count": -1, "audit-hash": "ab" * 32},
        {"audit-count": 1, "audit-hash": "AB" * 32},
        {"audit-count": True, "audit-hash": "ab" * 32},
        {"audit-count": "1", "audit-hash": "ab" * 32},
        {"audit-count": 1, "audit-hash": "ab" * 32, "more": "text"},
        {"more": "text"},
    ],
)
def test_something_unknown_beside_a_payload_is_a_failure_of_its_site_alone(
    values: dict[str, ConfigRecordValues],
) -> None:
    answers = asked(holding(beside(values)), says(b"yes"))
    assert answers.payloads == {"south": b"yes"}
    assert answers.failed["north"].startswith("beside the payload is ")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_in_place_of_an_array_are_an_exception(data: bytes, begins_well: bool) -> None:
    good = Array(np.frombuffer(b"yes", np.uint8))
    array = replace(good, data=good.data[: len(data)] + data if begins_well else data)
    answers = asked(holding(RecordDict({"payload": ArrayRecord({"bytes": array})})), says(b"yes"))
    assert "south" in answers.payloads
    assert ("north" in answers.payloads) != ("north" in answers.failed)


def test_a_reply_to_something_else_is_no_answer_whoever_sends_it() -> None:
    def late(message: Message) -> Message:
        reply = Message(packed(b"yes"), reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = "an earlier message"
        assert reply.metadata.src_node_id == NORTH
        return reply

    answers = asked(late, says(b"yes"))
    assert answers.payloads == {"south": b"yes"}
    assert answers.missing == ("north",)


def test_only_the_first_reply_counts() -> None:
    class Repeating(ScriptedGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            first = super().send_and_receive(messages)
            return [*first, *(Message(Error(2, "two"), reply_to=message) for message in self.asked)]

    answers = ask(Repeating({NORTH: says(b"one")}), {"north": NORTH}, "train", b"", 1.0)
    assert (answers.payloads, answers.failed) == ({"north": b"one"}, {})


@pytest.mark.parametrize("reason", [None, "", "first\nsecond\x1b[2J", "x" * 10_000])
def test_reasons_are_one_short_line(reason: str | None) -> None:
    answers = asked(lambda message: Message(Error(2, reason), reply_to=message), says(b"yes"))
    words = answers.failed["north"]
    assert words.isprintable()
    assert len(words) < 250
    assert words != "error 2: "


def test_in_short_keeps_short_words() -> None:
    assert in_short("the reply is to round 3") == "the reply is to round 3"


def waited(online: list[list[int]], needed: int, patience_s: float = 1e6) -> tuple[int, int]:
    """How many of the two nodes are online in the end, and how often the coordinator looked again."""
    slept: list[float] = []
    grid = ScriptedGrid({}, online=online)
    found, seconds = wait_for_nodes(grid, NODES.values(), needed, patience_s, slept.append)
    assert seconds >= 0
    return found, len(slept)


def test_nobody_waits_for_who_is_there() -> None:
    assert waited([[NORTH, SOUTH]], needed=2) == (2, 0)
    assert waited([[NORTH]], needed=1) == (1, 0)


def test_nodes_that_come_back_are_waited_for_and_strangers_do_not_count() -> None:
    assert waited([[], [99, 98], [NORTH, 99], [NORTH, SOUTH]], needed=2) == (2, 3)


def test_waiting_ends_with_the_patience() -> None:
    assert waited([[NORTH]], needed=2, patience_s=0.0) == (1, 0)
