"""The audit record: what is written, what a kill leaves, and that no change of it stays unseen."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core import audit
from flexmoe_core.audit import AuditLog, cut_file, head_file, read_head
from flexmoe_core.audit_line import EMPTY, Entry, Head, canonical
from flexmoe_core.audit_verify import Verdict, record_path, verify
from flexmoe_core.errors import AuditError, InputError

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Ticking:
    """A clock that moves on by a second at every look."""

    def __init__(self) -> None:
        self.seconds = 0

    def __call__(self) -> datetime:
        self.seconds += 1
        return START + timedelta(seconds=self.seconds)


def made(folder: Path, lines: int = 5) -> AuditLog:
    log = AuditLog(folder / "audit.jsonl", Ticking(), durable=False)
    for number in range(1, lines + 1):
        log.append("counted", number=number)
    return log


def words(verdict: Verdict) -> list[str]:
    return [f"{one.place}: {one.what}" for one in verdict.problems]


def rewritten(log: AuditLog, change: Callable[[list[bytes]], list[bytes]]) -> list[str]:
    """The problems after a change of the list of lines."""
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(change(lines)))
    return words(verify(log.path))


def write_head(path: Path, head: Head) -> None:
    head_file(path).write_bytes(canonical({"count": head.count, "hash": head.hash}))


def test_a_line_says_what_happened_and_when_and_continues_the_one_before(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", Ticking())
    assert log.append("began", run="r", sites=["north"], seed=3, share=0.5, code=None, done=False) == EMPTY
    before = log.append("went on", answers={"north": {"bytes": 7}})
    first, second = map(json.loads, log.path.read_text().splitlines())
    assert list(first) == sorted(first) == ["event", "facts", "hash", "number", "previous", "time"]
    assert first["facts"] == {"run": "r", "sites": ["north"], "seed": 3, "share": 0.5, "code": None, "done": False}
    assert (first["time"], second["time"]) == ("2026-03-01T12:00:01.000+00:00", "2026-03-01T12:00:02.000+00:00")
    assert (first["number"], second["number"]) == (1, 2)
    assert second["previous"] == first["hash"] == before.hash
    assert read_head(log.path) == Head(2, second["hash"])
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    verdict = verify(log.path)
    assert verdict.unbroken
    assert (verdict.lines, verdict.notes, verdict.head.count) == (2, (), 2)


@pytest.mark.parametrize("fact", [b"x", {1: 2}, {"a": object()}, np.zeros(1), KeyError("p1"), Path("x"), {"a"}])
def test_only_facts_can_be_written(tmp_path: Path, fact: object) -> None:
    log = made(tmp_path, 1)
    with pytest.raises(TypeError):
        log.append("wrong", fact=fact)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JSON"):
        log.append("wrong", fact=float("nan"))
    assert verify(log.path).lines == 1


def test_a_line_is_found_again_by_its_facts(tmp_path: Path) -> None:
    log = made(tmp_path, 3)
    assert log.holds("counted", number=2)
    assert not log.holds("counted", number=4)
    assert not log.holds("other", number=2)
    assert not AuditLog(tmp_path / "none").holds("counted")


def test_a_full_disk_is_an_error_and_what_it_cut_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = made(tmp_path, 2)
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(28, "No space left on device")
        return write(handle, data[:-49])

    monkeypatch.setattr(audit.os, "write", full)
    with pytest.raises(AuditError, match="No space left on device"):
        log.append("counted", number=3)
    monkeypatch.undo()
    assert verify(log.path).unbroken
    log.append("counted", number=3)
    verdict = verify(log.path)
    assert verdict.unbroken
    assert [entry.event for entry in verdict.entries] == ["counted", "counted", "cut line", "counted"]


def test_an_unwritable_record_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(tmp_path / "audit.jsonl").append("began")


APPEND = """
import sys
from pathlib import Path
from flexmoe_core.audit import AuditLog
for number in range(int(sys.argv[3])):
    AuditLog(Path(sys.argv[1]), durable=False).append("counted", process=sys.argv[2], number=number)
"""


def test_processes_that_append_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    path, each = tmp_path / "audit.jsonl", 40
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", APPEND, str(path), name, str(each)], env=os.environ | {"PYTHONPATH": "."}
        )
        for name in "abcd"
    ]
    assert [process.wait() for process in processes] == [0] * 4
    verdict = verify(path)
    assert verdict.unbroken
    assert verdict.lines == 4 * each
    for name in "abcd":
        numbers = [entry.facts["number"] for entry in verdict.entries if entry.facts["process"] == name]
        assert numbers == list(range(each))


def test_a_process_that_is_killed_at_any_moment_leaves_a_record_that_holds(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(6):
        size = path.stat().st_size if number else 0
        command = [sys.executable, "-c", APPEND, str(path), "x" * 5000, "100000"]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": "."})
        while not path.exists() or path.stat().st_size < size + 20_000:
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert verify(path).unbroken
    AuditLog(path).append("went on")
    assert verify(path).unbroken
    assert verify(path).notes == ()


def test_a_kill_between_line_and_head_is_a_note_that_the_next_line_repairs(tmp_path: Path) -> None:
    for lines in (1, 5):
        folder = tmp_path / str(lines)
        folder.mkdir()
        log = made(folder, lines - 1)
        head = head_file(log.path).read_bytes() if lines > 1 else None
        log.append("counted", number=lines)
        head_file(log.path).unlink() if head is None else head_file(log.path).write_bytes(head)
        verdict = verify(log.path)
        assert verdict.unbroken
        assert len(verdict.notes) == 1
        assert verdict.notes[0].startswith("the head is one line behind")
        log.append("counted", number=lines + 1)
        assert verify(log.path).notes == ()
        assert verify(log.path).unbroken


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.data())
def test_a_line_that_a_kill_cut_short_is_kept_aside_and_told(
    tmp_path_factory: pytest.TempPathFactory, lines: int, data: st.DataObject
) -> None:
    log = made(tmp_path_factory.mktemp("record"), lines)
    path = log.path
    whole = path.read_bytes() if lines else b""
    head = verify(path).head
    fragment = Entry(lines + 1, "then", "lost", {"size": 3}, head.hash).to_bytes()
    fragment = fragment[: data.draw(st.integers(1, len(fragment) - 1))]
    path.write_bytes(whole + fragment)
    assert verify(path).unbroken
    assert "cut short" in verify(path).notes[0]
    log.append("went on")
    verdict = verify(path)
    assert verdict.unbroken
    assert verdict.notes == ()
    cut, last = verdict.entries[-2:]
    assert (cut.event, cut.facts["bytes"], last.event) == ("cut line", len(fragment), "went on")
    aside = cut_file(path, lines + 1)
    assert aside.read_bytes() == fragment
    aside.write_bytes(b"other")
    assert "changed" in words(verify(path))[0]
    aside.unlink()
    assert "missing" in words(verify(path))[0]


def test_a_kill_while_a_cut_line_is_moved_aside_does_not_lose_it(tmp_path: Path) -> None:
    log = made(tmp_path, 2)
    cut_file(log.path, 3).write_bytes(b"{")  # moved and cut off, but not yet told
    log.append("went on")
    assert [entry.event for entry in verify(log.path).entries[-2:]] == ["cut line", "went on"]
    assert verify(log.path).unbroken


def test_each_damage_has_its_words(tmp_path: Path) -> None:
    def check(name: str, change: Callable[[list[bytes]], list[bytes]], *expected: str) -> None:
        (tmp_path / name).mkdir()
        assert rewritten(made(tmp_path / name), change) == list(expected)

    changed = "was changed: its content does not have the hash that it carries"
    check("changed", lambda x: [*x[:2], x[2].replace(b":3}", b":4}"), *x[3:]], f"line 3: {changed}")
    check("spelled", lambda x: [*x[:2], x[2].replace(b",", b", ", 1), *x[3:]], f"line 3: {changed}")
    check("no json", lambda x: [*x[:2], b"?\n", *x[3:]], "line 3: is not JSON")
    check("blank", lambda x: [*x[:2], b"\n", *x[2:]], "line 3: is not JSON")
    check("last no json", lambda x: [*x[:4], b"?\n"], "line 5: is not JSON")
    check("a list", lambda x: [*x[:2], b"[]\n", *x[3:]], "line 3: is JSON, but not a line of an audit record")
    check("first", lambda x: x[1:], "line 1: comes after a gap: number 1 missing")
    check("removed", lambda x: [*x[:1], *x[3:]], "line 2: comes after a gap: numbers 2 to 3 missing")
    check("copied", lambda x: [*x[:3], x[1], *x[3:]], "line 4: is a copy of line 2")
    check(
        "swapped",
        lambda x: [x[0], x[2], x[1], *x[3:]],
        "line 2: has number 3 and stands after number 1: out of order",
        "line 3: has number 2 and stands after number 3: out of order",
    )
    ends = "ends the record, but its head counts 5 lines"
    check("end", lambda x: x[:3], f"line 3: {ends}: numbers 4 to 5 missing at the end")
    check("empty", lambda x: [], f": {ends}: numbers 1 to 5 missing at the end")


def test_a_line_that_was_made_anew_with_its_hash_breaks_the_chain(tmp_path: Path) -> None:
    log = made(tmp_path)
    third, last = verify(log.path).entries[2::2]
    forged = [Entry(one.number, one.time, one.event, {"number": 9}, one.previous).to_bytes() for one in (third, last)]
    whole = log.path.read_bytes()
    replaced = "line 4: does not continue the line before it: one of the two was replaced"
    assert rewritten(log, lambda x: [*x[:2], forged[0], *x[3:]]) == [replaced]
    log.path.write_bytes(whole)
    assert rewritten(log, lambda x: [*x[:4], forged[1]]) == [
        "line 5: is not the end that the head names, which is number 5"
    ]


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[1]", b'{"count":1}', b'{"count":-1,"hash":"x"}', b"[" * 9999]
)
def test_a_record_without_its_head_is_broken_for_ever(tmp_path: Path, content: bytes | None) -> None:
    log = made(tmp_path)
    head_file(log.path).unlink() if content is None else head_file(log.path).write_bytes(content)
    assert "is missing or not readable" in words(verify(log.path))[0]
    assert verify(log.path, is_copy=True).unbroken
    log.append("went on")
    assert words(verify(log.path)) == ["line 6: begins the record anew: its head was missing or could not be read"]
    log.append("went on")
    assert len(words(verify(log.path))) == 1


def test_a_head_that_is_far_behind_is_found(tmp_path: Path) -> None:
    log = made(tmp_path)
    write_head(log.path, verify(log.path).entries[1].head)
    assert words(verify(log.path)) == ["line 5: is not the end that the head names, which is number 2"]


def test_a_record_that_was_deleted_is_missed(tmp_path: Path) -> None:
    log = made(tmp_path)
    log.path.unlink()
    assert "numbers 1 to 5 missing" in words(verify(record_path(tmp_path)))[0]
    log.append("went on")
    assert words(verify(log.path)) == ["line 1: comes after a gap: numbers 1 to 5 missing"]


def test_where_there_is_no_record_there_is_nothing_to_verify(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="there is no audit record"):
            record_path(place)
    assert record_path(made(tmp_path).path) == record_path(tmp_path)


Lines = list[bytes]


@st.composite
def damages(draw: st.DrawFn, lines: Lines) -> bytes:  # noqa: PLR0911
    """The record after one change, removal, swap, copy or truncation of it."""
    data = b"".join(lines)
    one, other = draw(st.lists(st.integers(0, len(lines) - 1), min_size=2, max_size=2, unique=True))
    match draw(st.sampled_from(["byte", "insert", "delete", "remove", "swap", "copy", "truncate"])):
        case "byte":
            place = draw(st.integers(0, len(data) - 1))
            return data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
        case "insert":
            place = draw(st.integers(0, len(data)))
            return data[:place] + draw(st.binary(min_size=1, max_size=3)) + data[place:]
        case "delete":
            place = draw(st.integers(0, len(data) - 1))
            return data[:place] + data[place + draw(st.integers(1, 400)) :]
        case "remove":
            return b"".join(lines[:one] + lines[one + 1 :])
        case "swap":
            swapped = list(lines)
            swapped[one], swapped[other] = lines[other], lines[one]
            return b"".join(swapped)
        case "copy":
            return b"".join([*lines[:other], lines[one], *lines[other:]])
        case _:
            return data[: draw(st.integers(0, len(data) - 1))]


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2), st.data())
def test_no_single_damage_stays_unseen_and_lines_written_later_do_not_hide_it(
    tmp_path_factory: pytest.TempPathFactory, lines: int, later: int, data: st.DataObject
) -> None:
    log = made(tmp_path_factory.mktemp("record"), lines)
    good = log.path.read_bytes()
    damaged = data.draw(damages(good.splitlines(keepends=True)))
    log.path.write_bytes(damaged)
    appended_only = damaged.startswith(good)
    for number in range(later):
        log.append("later", number=number)
    verdict = verify(log.path)
    if appended_only and b"\n" not in damaged[len(good) :]:  # as if a kill had cut a line short
        assert verdict.unbroken
        assert verdict.notes if not later else verdict.entries[-later - 1].event == "cut line"
    else:
        assert not verdict.unbroken
        assert all(problem.what and problem.remedy for problem in verdict.problems)
