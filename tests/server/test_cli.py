import sys
from pathlib import Path

import pytest

from server.cli import main
from tests.server.report.fabricated import Fabrication, fabricate


def flexmoe_server(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["flexmoe-server", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_report_writes_the_page_and_prints_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fabricate(tmp_path / "run", Fabrication(rounds=2))
    assert flexmoe_server(monkeypatch, "report", folder) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_folder_without_a_run_is_a_message_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flexmoe_server(monkeypatch, "report", tmp_path) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(f"flexmoe-server: {tmp_path}: holds no run.")
    assert streams.out == ""
