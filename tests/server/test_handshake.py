from __future__ import annotations

import pytest
from flwr.app import Error, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.errors import RunFailed
from server.handshake import Participants, shake_hands
from server.identities import Identities
from tests.server.scripted import (
    METHOD,
    STUDY,
    Answer,
    ScriptedGrid,
    Unrecorded,
    handshake_reply,
    make_terms,
    says,
    silent,
)

TERMS, UNSIGNED = make_terms(), Identities(None)


def no_sleep(seconds: float) -> None:
    """Time does not pass."""


def shaken(*answers: Answer, quorum: int = 1) -> Participants:
    grid = ScriptedGrid(dict(enumerate(answers, start=11)))
    return shake_hands(
        grid,
        TERMS,
        quorum,
        len(answers),
        deadline_s=1.0,
        record=Unrecorded(),
        identities=UNSIGNED,
        sleep=no_sleep,
    )


def test_who_answers_takes_part_under_its_own_name() -> None:
    participants = shaken(says(handshake_reply("south")), says(handshake_reply("north", {1: 9})))
    assert participants.nodes == {"south": 11, "north": 12}
    assert participants.refused == {}
    assert list(participants.facts()) == ["north", "south"]
    assert participants.facts()["north"]["announced"] == {"1": 9}


def test_a_second_site_of_a_name_is_refused_and_the_first_one_stays() -> None:
    participants = shaken(says(handshake_reply("north", {3: 20})), says(handshake_reply("north", {1: 99})))
    assert participants.nodes == {"north": 11}
    assert participants.replies["north"].announced == {3: 20}
    assert participants.refused == {"node 12": "a second site calls itself north"}


def test_errors_and_silence_are_refused_with_the_reason() -> None:
    participants = shaken(
        says(handshake_reply("north")), silent, lambda message: Message(Error(2, "it broke"), reply_to=message)
    )
    assert participants.refused == {"node 12": "no answer", "node 13": "error 2: it broke"}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (handshake_reply("north", {0: 20}), "combinations"),
        (handshake_reply("north", {-1: 20}), "combinations"),
        (handshake_reply("north", {4: 20}), "combinations"),
        (handshake_reply("north", {10**40: 20}), "combinations"),
        (handshake_reply("north", {3: -20}), "malformed"),
        (handshake_reply("north", {3: 0}), "malformed"),
        (handshake_reply("north", {3: 10**9}), "malformed"),
        (handshake_reply("north", {3: 4}), "fewer than 5 patients"),
        (handshake_reply("north", observed={"labs": 4}), "fewer than 5 patients"),
        (handshake_reply("north", observed={"lungs": 20}), "modalities"),
        (handshake_reply("north", modalities=("history", "lungs")), "modalities"),
        (handshake_reply("north", patients={"test": 20}), "malformed"),
        (handshake_reply("north/../south"), "malformed"),
        (handshake_reply(""), "malformed"),
        (handshake_reply("n" * 10_000), "malformed"),
        (handshake_reply("north", more="facts"), "malformed"),
        (b"", "no HandshakeReply"),
        (handshake_reply("north")[:-1], "no HandshakeReply"),
    ],
)
def test_a_reply_that_cannot_be_is_refused_in_a_few_words(reply: bytes, reason: str) -> None:
    participants = shaken(says(reply), says(handshake_reply("south")))
    assert participants.nodes == {"south": 12}
    (node,) = participants.refused
    assert node == "node 11"
    assert reason in participants.refused[node]
    assert len(participants.refused[node]) < 300


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_refuse_their_own_site(data: st.DataObject) -> None:
    good = handshake_reply("north")
    place = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :]
    assert shaken(says(damaged), says(handshake_reply("south"))).nodes == {"south": 12}


def test_without_a_quorum_the_run_fails_and_says_why() -> None:
    with pytest.raises(RunFailed, match=r"1 of 2 needed sites answered the handshake\. node 12: no answer"):
        shaken(says(handshake_reply("north")), silent, quorum=2)


def test_the_expected_sites_are_waited_for() -> None:
    sites = {11: says(handshake_reply("north")), 12: says(handshake_reply("south"))}
    grid = ScriptedGrid(sites, online=[[], [11], [11], [11, 12]])
    slept: list[float] = []
    participants = shake_hands(
        grid,
        TERMS,
        quorum=1,
        expected=2,
        deadline_s=1e6,
        record=Unrecorded(),
        identities=UNSIGNED,
        sleep=slept.append,
    )
    assert set(participants.nodes) == {"north", "south"}
    assert len(slept) == 3


def test_a_quorum_begins_when_the_deadline_has_passed() -> None:
    grid = ScriptedGrid({11: says(handshake_reply("north"))}, online=[[11]])
    assert set(
        shake_hands(
            grid,
            TERMS,
            1,
            expected=5,
            deadline_s=0.0,
            record=Unrecorded(),
            identities=UNSIGNED,
            sleep=no_sleep,
        ).nodes
    ) == {"north"}


def test_less_than_a_quorum_fails_when_the_deadline_has_passed() -> None:
    grid = ScriptedGrid({11: says(handshake_reply("north"))}, online=[[11]])
    with pytest.raises(RunFailed, match="1 sites came online within 0 s, 2 are needed"):
        shake_hands(
            grid,
            TERMS,
            quorum=2,
            expected=2,
            deadline_s=0.0,
            record=Unrecorded(),
            identities=UNSIGNED,
            sleep=no_sleep,
        )
    assert grid.asked == []


def test_the_table_has_what_the_sites_announce() -> None:
    participants = shaken(says(handshake_reply("south", {2: 7})), says(handshake_reply("north", {1: 9, 3: 20})))
    table = participants.table(TERMS)
    assert table.masks == (3, 1, 2)
    assert max(table.experts) < METHOD.model.experts


def test_the_table_is_that_of_the_study_where_it_lists_combinations() -> None:
    declared = STUDY.model_copy(update={"combinations": (("history", "labs"), ("labs",))})
    participants = shaken(says(handshake_reply("north", {1: 9})))
    assert participants.table(make_terms(declared)).masks == (3, 2)
