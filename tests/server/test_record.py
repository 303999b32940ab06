"""The coordinator's record of a run, and a site's record against it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message

from flexmoe_core.attachments import RECORD, Attachments
from flexmoe_core.audit import AuditLog
from flexmoe_core.audit_line import Entry, Head
from flexmoe_core.audit_verify import record_path, verify
from flexmoe_core.errors import AuditError, RunFailed
from flexmoe_core.messages import TrainReply, TrainRequest, decode, encode, outline
from server.anchors import compare
from server.cli import main
from server.federation import Federation
from server.run_store import RunStore
from tests.server.scripted import STUDY, Answer, ScriptedGrid, finish_reply, handshake_reply, packed, silent, unpacked
from tests.server.test_federation import HEAD, configured, federated, moved, site

GOOD = moved({HEAD: (1.0, [5])})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run", STUDY, configured())


def lines_of(store: RunStore) -> list[dict[str, Any]]:
    verdict = verify(record_path(store.folder))
    assert verdict.unbroken
    assert verdict.notes == ()
    return [{"event": entry.event, **entry.facts} for entry in verdict.entries]


def digest(store: RunStore, name: str) -> str:
    return hashlib.sha256((store.folder / name).read_bytes()).hexdigest()


def failing_at_round(number: int, answer: Answer) -> Answer:
    def fails(message: Message) -> Message | None:
        if message.metadata.message_type == "train" and outline(unpacked(message)).facts["round"] == number:
            return Message(Error(2, "it broke"), reply_to=message)
        return answer(message)

    return fails


def recording(name: str, log: AuditLog) -> Callable[[Message], Message]:
    """A site that keeps a record as a real one does, and tells its head."""

    def answer(message: Message) -> Message:
        request = outline(unpacked(message))
        kind = message.metadata.message_type
        if kind == "query.handshake":
            payload = handshake_reply(name)
        elif kind == "train":
            asked, state = decode(unpacked(message), TrainRequest)
            update = GOOD(asked.round, state)
            reply = TrainReply(site=name, round=asked.round, attempt=1, loss=0.5, seconds=0.1)
            arrays = {f"weighted/{key}": value for key, value in update.weighted.items()}
            payload = encode(reply, arrays | {f"support/{key}": value for key, value in update.support.items()})
        else:
            payload = finish_reply(name)
        sent = hashlib.sha256(payload).hexdigest()
        head = log.append("answered", run=request.facts["terms"]["run"], site=name, reply={"sha256": sent})
        content = packed(payload)
        content[RECORD] = ConfigRecord(dict(Attachments(audit_head=head).to_values()))
        return Message(content, reply_to=message)

    return answer


def test_a_run_is_recorded_from_start_to_finish(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXMOE_BUNDLE", "c" * 64)
    federated(store, site("north", GOOD), failing_at_round(2, site("south", GOOD)))
    started, asked, shaken, first, *rest = lines_of(store)
    assert started == {
        "event": "started",
        "run": store.run,
        "study": "scripted",
        "seed": store.settings.seed,
        "settings": digest(store, "config.toml"),
        "study_file": digest(store, "study.toml"),
        "bundle": "c" * 64,
    }
    assert (asked["event"], asked["question"], asked["sites"]) == ("asked", "handshake", ["node 11", "node 12"])
    assert shaken["nodes"] == {"north": 11, "south": 12}
    assert (first["event"], first["round"]) == ("checkpoint", 0)
    assert [line["event"] for line in rest] == ["asked", "answered", "checkpoint"] * 2 + [
        "asked",
        "answered",
        "finished",
    ]
    assert [(line["question"], line["round"], line["attempt"]) for line in rest if "question" in line] == [
        *[("train", 1, 1)] * 2,
        *[("train", 2, 1)] * 2,
        *[("finish", 2, None)] * 2,
    ]
    assert set(rest[1]["answers"]) == {"north", "south"}
    assert (set(rest[4]["answers"]), rest[4]["failed"]) == ({"north"}, {"south": "error 2: it broke"})
    assert rest[1]["privacy"] == {"mechanism": "none"}
    assert rest[5]["sha256"] == digest(store, "checkpoint/round-00002.json")
    assert rest[-1]["metrics"] == digest(store, "metrics.json")


def test_questions_and_answers_are_recorded_by_size_and_hash(store: RunStore) -> None:
    asked: dict[str, bytes] = {}
    said: dict[str, bytes] = {}
    north = site("north", GOOD)

    def listening(message: Message) -> Message:
        reply = north(message)
        kind = message.metadata.message_type
        asked[kind], said[kind] = unpacked(message), unpacked(reply)
        return reply

    federated(store, listening)
    for kind, question in (("query.handshake", "handshake"), ("train", "train"), ("evaluate", "finish")):
        sent = [line for line in lines_of(store) if line.get("question") == question][-2:]
        assert sent[0]["request"] == {"bytes": len(asked[kind]), "sha256": hashlib.sha256(asked[kind]).hexdigest()}
        (answer,) = sent[1]["answers"].values()
        expected = {"bytes": len(said[kind]), "sha256": hashlib.sha256(said[kind]).hexdigest(), "head": None}
        assert answer == expected


def test_where_a_sites_privacy_ledger_ends_is_recorded_with_its_answer(store: RunStore) -> None:
    head, north = Head(12, "d" * 64), site("north", GOOD)

    def charged(message: Message) -> Message:
        reply = north(message)
        assert isinstance(reply, Message)
        reply.content[RECORD] = ConfigRecord(dict(Attachments(ledger_head=head).to_values()))
        return reply

    federated(store, charged)
    answers = [one for line in lines_of(store) if line["event"] == "answered" for one in line["answers"].values()]
    assert len(answers) == 4
    assert all(one["ledger"] == {"count": 12, "hash": "d" * 64} and one["head"] is None for one in answers)


def test_missing_and_dropped_sites_are_named_with_the_reason(store: RunStore) -> None:
    south = site("south", moved({HEAD: (float("nan"), [5])}))

    def west(message: Message) -> Message | None:
        return silent(message) if message.metadata.message_type == "train" else site("west", GOOD)(message)

    seen = federated(store, site("north", GOOD), south, site("north", GOOD), west)
    _, _, shaken, _, _, trained, *_ = lines_of(store)
    assert shaken["dropped"] == {"node 13": "a second site calls itself north"}
    assert trained["missing"] == ["west"]
    assert trained["dropped"] == seen[1]["dropped"]
    assert list(trained["dropped"]) == ["south"]


def test_a_resumed_run_goes_on_with_the_same_record(store: RunStore) -> None:
    def stop(row: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Federation(ScriptedGrid({11: site("north", GOOD)}), store, False, 1, stop).run()
    assert lines_of(store)[-1] == {"event": "failed", "error": "KeyboardInterrupt"}
    federated(store, site("north", GOOD), resume=True)
    again = lines_of(store)
    assert [line["event"] for line in again if "run" in line] == ["started", "resumed"]
    assert again[-1]["event"] == "finished"


def test_a_run_that_fails_says_so_without_the_text_of_the_error(store: RunStore) -> None:
    with pytest.raises(RunFailed):
        federated(store, silent)
    assert lines_of(store)[-1] == {"event": "failed", "error": "RunFailed"}


def test_a_run_whose_record_cannot_be_written_asks_nobody(store: RunStore) -> None:
    (store.folder / "audit.jsonl").mkdir()
    grid = ScriptedGrid({11: site("north", GOOD)})
    with pytest.raises(AuditError, match=r"audit\.jsonl"):
        Federation(grid, store, False, 1, lambda row: None).run()
    assert grid.asked == []


@pytest.fixture
def logs(store: RunStore, tmp_path: Path) -> dict[str, AuditLog]:
    """Records of two sites after a run."""
    made = {name: AuditLog(tmp_path / f"{name}.jsonl", durable=False) for name in ("north", "south")}
    made["north"].append("answered", run="of an earlier run", site="north", reply={"sha256": "x"})
    federated(store, *(recording(name, log) for name, log in made.items()))
    return made


def found(store: RunStore, path: Path) -> list[str]:
    comparison = compare(verify(record_path(store.folder)), verify(path, is_copy=True))
    assert bool(comparison.problems) or "4 heads and 4 answers" in comparison.found[0]
    return [f"{problem.place}: {problem.what}" for problem in comparison.problems]


def test_the_record_of_a_site_fits_what_it_said_of_it(store: RunStore, logs: dict[str, AuditLog]) -> None:
    assert found(store, logs["north"].path) == []
    logs["south"].append("later")
    assert found(store, logs["south"].path) == []


def forge(path: Path, change: Callable[[list[Entry]], list[Entry]]) -> None:
    """Write the record anew, with a chain that holds."""
    entries, log = change(list(verify(path).entries)), AuditLog(path, durable=False)
    path.unlink()
    path.with_name(f"{path.name}.head").unlink()
    for entry in entries:
        log.append(entry.event, **entry.facts)


def test_a_record_that_was_written_anew_as_a_whole_is_found(store: RunStore, logs: dict[str, AuditLog]) -> None:
    path = logs["north"].path
    forge(path, lambda entries: entries[1:])
    assert verify(path).unbroken
    problems = found(store, path)
    assert f"line 3: line 1 of {path} is not the one that north had then" in problems
    assert not any("does not tell" in problem for problem in problems)


def test_an_answer_that_a_site_does_not_tell_of_is_found(store: RunStore, logs: dict[str, AuditLog]) -> None:
    path = logs["south"].path
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    assert "missing at the end" in found(store, path)[0]
    path.with_name("south.jsonl.head").unlink()  # as a copy comes
    assert found(store, path) == [
        f"line 9: south has answered this train, and {path} does not tell of it",
        f"line 12: south had 3 lines then, and {path} has 2",
        f"line 12: south has answered this finish, and {path} does not tell of it",
    ]


def test_the_record_of_somebody_else_is_told(store: RunStore, logs: dict[str, AuditLog], tmp_path: Path) -> None:
    other = AuditLog(tmp_path / "other.jsonl", durable=False)
    other.append("answered", run="another", site="north", reply={"sha256": "x"})
    assert found(store, other.path) == [": tells of no answer in this run"]
    for name in ("north", "east"):
        other.append("answered", run=store.run, site=name, reply={"sha256": "x"})
    assert found(store, other.path) == [": tells of several sites: east, north"]


def test_a_site_that_told_no_head_cannot_be_compared(store: RunStore, tmp_path: Path) -> None:
    federated(store, site("north", GOOD))
    log = AuditLog(tmp_path / "north.jsonl", durable=False)
    for line in lines_of(store):
        for answer in line.get("answers", {}).values():
            log.append("answered", run=store.run, site="north", reply={"sha256": answer["sha256"]})
    assert found(store, log.path) == [": holds no head of the record of north: nothing can be compared"]


def flexmoe_server(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["flexmoe-server", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_line_compares_and_shows(
    store: RunStore, logs: dict[str, AuditLog], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    north = logs["north"].path
    assert flexmoe_server(monkeypatch, "audit", "verify", store.folder) == 0
    assert capsys.readouterr().out.endswith("unbroken\n")
    assert flexmoe_server(monkeypatch, "audit", "verify", store.folder, "--site-record", north) == 0
    assert "north: 4 heads and 4 answers compared" in capsys.readouterr().out
    forge(north, lambda entries: entries[1:])
    assert flexmoe_server(monkeypatch, "audit", "verify", store.folder, "--site-record", north) == 2
    streams = capsys.readouterr()
    assert "unbroken" not in streams.out
    assert "is not the one that north had then" in streams.err
    assert flexmoe_server(monkeypatch, "audit", "show", store.folder, "--last", 1) == 0
    assert "finished" in capsys.readouterr().out
    assert flexmoe_server(monkeypatch, "audit", "verify", north, "--site-record", north) == 2
