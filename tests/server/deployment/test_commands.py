"""The coordinator's command line, as its user types it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flexmoe_core.enrollment import fingerprint
from server.cli import main
from server.deployment.control import FlowerRun
from server.deployment.folder import CoordinatorFolder
from tests.flexmoe_core.hospital_keys import enrollment_of
from tests.server.deployment.coordinators import FakeSuperLink, make_folder
from tests.server.scripted import STUDY

Command = Callable[..., tuple[int, str, str]]
COMMANDS = ("init", "enroll", "revoke", "renew", "start", "run", "resume", "stop", "status", "report")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The exit code of a command line, and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flexmoe-server", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        streams = capsys.readouterr()
        return int(end.value.code or 0), streams.out, streams.err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return make_folder(tmp_path / "coordinator", "north")


def enrollment_file(path: Path, site: str) -> Path:
    path.write_text(enrollment_of(site).model_dump_json())
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_says_what_dir_is(server: Command, command: str) -> None:
    code, out, _ = server(command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    described = out[: out.index("Arguments")]
    assert "DIR is" in described or "RUN again" in described


def test_from_nothing_to_a_welcome(server: Command, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY.to_toml())
    path = tmp_path / "coordinator"
    code, out, err = server("init", path, "--study", tmp_path / "study.toml", "--name", "fl.example.org")
    assert (code, err) == (0, "")
    assert "https://fl.example.org:443" in out
    enrollment = enrollment_of("north")
    (tmp_path / "enrollment.json").write_text(enrollment.model_dump_json())
    code, out, err = server("enroll", path, "north", "--public-key", tmp_path / "enrollment.json")
    assert (code, err) == (0, "")
    assert fingerprint(enrollment.node_key) in out
    assert fingerprint(enrollment.identity_key) in out
    assert str(path / "welcome" / "north.json") in out
    code, out, _ = server("revoke", path, "north")
    assert code == 0
    assert fingerprint(enrollment.node_key) in out
    assert CoordinatorFolder.open(path).roster.active == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--name", "fl_1.example.org"), "the command line, outside.names.#1: is neither a host name"),
        (("--name", "a.org", "--port", "0"), "the command line, outside.port: should be greater"),
        (("--name", "a.org", "--port", "9190"), "are not three different ports"),
        (("--name", "a.org", "--listen", "eth0"), "the command line, outside.listen: is not an IP address"),
    ],
)
def test_wrong_settings_make_no_folder(
    server: Command, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "study.toml").write_text(STUDY.to_toml())
    code, out, err = server("init", tmp_path / "coordinator", "--study", tmp_path / "study.toml", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert not (tmp_path / "coordinator").exists()


def test_another_hospital_s_file_is_refused(server: Command, folder: CoordinatorFolder, tmp_path: Path) -> None:
    file = enrollment_file(tmp_path / "enrollment.json", "south")
    code, _, err = server("enroll", folder.path, "west", "--public-key", file)
    assert code == 2
    assert f"{file}, site: is south, not west. Ask the hospital which name is right." in err
    assert list(folder.roster.active) == ["north"]


def test_a_renewal_is_the_coordinator_s_or_a_hospital_s(server: Command, folder: CoordinatorFolder) -> None:
    before = folder.server
    code, out, _ = server("renew", folder.path)
    assert code == 0
    assert folder.server != before
    assert re.search(r"Certificate +until \d{4}-\d\d-\d\d", out)
    renewed = folder.server
    code, out, _ = server("renew", folder.path, "--site", "north")
    assert code == 0
    assert "north.json" in out
    assert folder.server == renewed
    assert server("renew", folder.path, "--site", "south")[0] == 2


def test_a_run_is_submitted_refused_while_it_goes_on_and_stopped(
    server: Command, folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.deployment.runs.build_bundle", lambda: b"bundle")
    superlink = FakeSuperLink().place(monkeypatch, "runs", "status")
    code, out, _ = server("run", folder.path, "--name", "first", "--rounds", 3, "--no-follow")
    assert code == 0
    assert str(folder.path / "runs" / "first") in out
    assert superlink.submitted[0]["expected-sites"] == 1
    superlink.states = [FlowerRun(11, "running", "")]
    code, _, err = server("resume", folder.path, "--no-follow")
    assert code == 2
    assert "is running. Wait for it, or stop it" in err
    assert server("stop", folder.path)[1] == "first was stopped\n"
    superlink.states = [FlowerRun(11, "finished:stopped", "")]
    assert server("stop", folder.path)[1] == "first was not running\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--expected", 2), "--expected: is 2, and 1 hospital is enrolled"),
        (("--set", "federation.quorum=2"), "federation.quorum: is 2, and 1 hospital is enrolled"),
        (("--name", "../elsewhere"), "../elsewhere: cannot be the name of a run"),
        (("--preset", "smal"), "Did you mean 'small'?"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_made(
    server: Command,
    folder: CoordinatorFolder,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    words: str,
) -> None:
    superlink = FakeSuperLink().place(monkeypatch, "runs")
    code, out, err = server("run", folder.path, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert superlink.submitted == []
    assert list((folder.path / "runs").iterdir()) == []


def test_a_run_without_a_superlink_fails_in_words_and_leaves_nothing(
    server: Command, folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSuperLink(answers=False).place(monkeypatch, "runs", "status")
    code, _, err = server("run", folder.path)
    assert code == 1
    assert "the SuperLink at 127.0.0.1:9190 does not answer" in err
    assert list((folder.path / "runs").iterdir()) == []


def test_status_is_for_people_and_for_programs(
    server: Command, folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSuperLink(answers=False).place(monkeypatch, "runs", "status")
    code, out, _ = server("status", folder.path)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"north +unknown", out)
    code, out, _ = server("status", folder.path, "--json")
    assert '"connection": "unknown"' in out


def test_what_is_no_coordinator_s_folder_is_refused_by_every_command(server: Command, tmp_path: Path) -> None:
    file = enrollment_file(tmp_path / "enrollment.json", "north")
    for command in (
        ("enroll", tmp_path, "north", "--public-key", file),
        ("revoke", tmp_path, "north"),
        *((name, tmp_path) for name in ("renew", "start", "run", "resume", "stop", "status")),
    ):
        code, _, err = server(*command)
        assert code == 2
        assert err == (
            f"flexmoe-server: {tmp_path}: is no coordinator's folder. "
            "Make one with 'flexmoe-server init', or correct the path.\n"
        )
