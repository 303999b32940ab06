from __future__ import annotations

import sys
from pathlib import Path

import pytest

from client.cli import main
from flexmoe_core.audit import AuditLog


def flexmoe_client(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["flexmoe-client", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path / "audit.jsonl", durable=False)
    for number in (1, 2, 3):
        log.append("answered", question="train", round=number, run="ab" * 16, nothing=None, names=list("abc") * 9)
    return log.path


def test_a_whole_record_is_unbroken(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (record, record.parent):
        assert flexmoe_client(monkeypatch, "audit", "verify", place) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [f"Record    {record}", "Lines     3"]
        assert [line.split()[0] for line in lines] == ["Record", "Lines", "First", "Last", "Head", "unbroken"]
        assert len(lines[4].split()[2]) == 64


def test_every_problem_of_a_broken_record_has_its_line(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = record.read_text()
    record.write_text(text.replace('"round":1', '"round":7').replace('"round":3', '"round":8'))
    assert flexmoe_client(monkeypatch, "audit", "verify", record) == 2
    streams = capsys.readouterr()
    assert "unbroken" not in streams.out
    first, second = streams.err.splitlines()
    assert first.startswith(f"{record}, line 1: was changed: ")
    assert second.startswith(f"{record}, line 3: was changed: ")
    assert flexmoe_client(monkeypatch, "audit", "show", record) == 0
    assert "broken" in capsys.readouterr().err


def test_the_newest_lines_are_shown_last(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flexmoe_client(monkeypatch, "audit", "show", record, "--last", 2) == 0
    out = capsys.readouterr().out
    assert "train round 1" not in out
    assert out.index("answered: train round 2") < out.index("answered: train round 3")
    assert "abababababab…" in out
    assert "27 in all" in out
    assert "nothing" not in out


@pytest.mark.parametrize("command", ["verify", "show"])
def test_where_there_is_no_record_there_is_a_message_and_no_traceback(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flexmoe_client(monkeypatch, "audit", command, tmp_path) == 2
    assert capsys.readouterr().err.startswith(
        f"flexmoe-client: {tmp_path / 'audit.jsonl'}: there is no audit record."
    )
