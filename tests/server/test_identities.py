"""Whose answers are believed: those that the site itself signed, for this question."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from client.keys import ENROLLMENT, IDENTITY_KEY, make_keys
from flexmoe_core.attachments import RECORD, Attachments
from flexmoe_core.audit_line import Head
from flexmoe_core.enrollment import Member, Roster
from flexmoe_core.errors import RunFailed
from flexmoe_core.signatures import Statement, digest_of, read_identity_key
from server.conversation import Answers
from server.handshake import Participants, shake_hands
from server.identities import Identities
from tests.server.scripted import (
    Answer,
    ScriptedGrid,
    Unrecorded,
    handshake_reply,
    make_terms,
    packed,
    unpacked,
)

HEAD = Head(3, "a" * 64)
REQUEST = digest_of(b"request")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of two hospitals."""
    folder = tmp_path_factory.mktemp("keys")
    for site in ("north", "south"):
        make_keys(folder / site, site)
    return folder


def roster_of(keys: Path, *sites: str, revoked: str = "") -> Roster:
    members = []
    for site in sites:
        text = (keys / site / ENROLLMENT).read_text().replace('"format": 1,', f'"enrolled": "{NOW.isoformat()}",')
        gone = {"revoked": NOW} if site == revoked else {}
        members.append(Member.model_validate_json(text).model_copy(update=gone))
    return Roster(members=tuple(members))


def signed(
    keys: Path, site: str, question: str, request: bytes, payload: bytes, head: Head | None = HEAD
) -> Attachments:
    beside = Attachments(head)
    said = Statement(site, question, digest_of(request), digest_of(payload), beside.record)
    return replace(beside, signature=said.sign(read_identity_key(keys / site / IDENTITY_KEY)))


def test_what_a_site_signed_is_believed_and_nothing_else(keys: Path) -> None:
    identities = Identities(roster_of(keys, "north", "south"))
    good = signed(keys, "north", "train", b"request", b"reply")
    assert identities.objection("train", REQUEST, "north", b"reply", good) is None
    for question, request, site, payload, beside in (
        ("finish", b"request", "north", b"reply", good),
        ("train", b"another", "north", b"reply", good),
        ("train", b"request", "south", b"reply", good),
        ("train", b"request", "north", b"changed", good),
        ("train", b"request", "north", b"reply", replace(good, audit_head=Head(4, "a" * 64))),
        ("train", b"request", "north", b"reply", replace(good, audit_head=None)),
        ("train", b"request", "north", b"reply", replace(good, signature=b"")),
        ("train", b"request", "north", b"reply", replace(good, signature=bytes(64))),
        ("train", b"request", "north", b"reply", signed(keys, "south", "train", b"request", b"reply")),
    ):
        why = identities.objection(question, digest_of(request), site, payload, beside)  # type: ignore[arg-type]
        assert why == "did not sign this answer"


def test_a_stranger_and_a_revoked_hospital_are_not_on_the_roster(keys: Path) -> None:
    good = signed(keys, "north", "train", b"request", b"reply")
    for roster in (roster_of(keys, "south"), roster_of(keys, "north", "south", revoked="north")):
        why = Identities(roster).objection("train", REQUEST, "north", b"reply", good)
        assert why == "is not on the roster"


def test_without_a_roster_nobody_has_to_sign() -> None:
    assert Identities(None).objection("train", REQUEST, "north", b"reply", Attachments()) is None


def test_an_answer_that_another_site_gave_has_failed_and_the_others_count(keys: Path) -> None:
    payloads = {"north": b"reply", "south": b"reply"}
    beside = {site: signed(keys, "north", "train", b"request", b"reply") for site in payloads}
    answers = Answers(payloads, {"east": "error 5"}, ("west",), bytes_up=10, bytes_down=20, beside=beside)
    checked = Identities(roster_of(keys, "north", "south")).checked("train", b"request", answers)
    assert checked.payloads == {"north": b"reply"}
    assert checked.failed == {"east": "error 5", "south": "south did not sign this answer"}
    assert (checked.missing, checked.bytes_up) == (("west",), 10)


class NamedGrid(ScriptedGrid):
    """Nodes with the names under which they were registered."""

    def __init__(self, sites: dict[int, Answer], names: dict[int, str]) -> None:
        super().__init__(sites)
        self._names = names

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in self._names.items()]


def says_signed(keys: Path, signer: str, site: str) -> Answer:
    def answer(message: Message) -> Message:
        payload = handshake_reply(site)
        beside = signed(keys, signer, "handshake", unpacked(message), payload)
        content = RecordDict({**packed(payload), RECORD: ConfigRecord(dict(beside.to_values()))})
        return Message(content, reply_to=message)

    return answer


def shaken(grid: ScriptedGrid, roster: Roster) -> Participants:
    return shake_hands(grid, make_terms(), 1, 2, 1.0, Unrecorded(), Identities(roster), lambda seconds: None)


def test_a_site_takes_part_under_the_name_of_its_node_and_of_its_key(keys: Path) -> None:
    roster = roster_of(keys, "north", "south")
    names = {11: "north", 12: "south"}
    same_name = {11: "north", 12: "north"}
    everybody = {11: says_signed(keys, "north", "north"), 12: says_signed(keys, "south", "south")}
    assert shaken(NamedGrid(everybody, names), roster).nodes == {"north": 11, "south": 12}
    impostor = {11: says_signed(keys, "north", "north"), 12: says_signed(keys, "south", "north")}
    found = shaken(NamedGrid(impostor, same_name), roster)
    assert found.nodes == {"north": 11}
    assert found.refused == {"node 12": "north did not sign this answer"}


def test_a_site_that_answers_through_the_node_of_another_is_refused(keys: Path) -> None:
    roster = roster_of(keys, "north", "south")
    grid = NamedGrid({11: says_signed(keys, "north", "north")}, {11: "south"})
    with pytest.raises(RunFailed, match="the node of south calls itself north"):
        shaken(grid, roster)
