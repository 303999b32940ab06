from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flexmoe_core.errors import RunFailed
from server.deployment.control import NoAnswer
from server.deployment.folder import CoordinatorFolder
from server.deployment.membership import enroll, revoke
from server.deployment.registrar import Registrar, bring_into_step, reload_proxy
from tests.flexmoe_core.hospital_keys import enrollment_of
from tests.server.deployment.coordinators import NOW, FakeSuperLink, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return make_folder(tmp_path / "coordinator", "north", "south", client_certificates=True)


def step(superlink: FakeSuperLink, folder: CoordinatorFolder) -> list[str]:
    told: list[str] = []
    bring_into_step(superlink, folder.roster, told.append)  # type: ignore[arg-type]
    return told


def test_who_is_on_the_roster_is_registered_once(folder: CoordinatorFolder) -> None:
    superlink = FakeSuperLink()
    assert step(superlink, folder) == ["north may connect", "south may connect"]
    assert step(superlink, folder) == []
    assert [node.name for node in superlink.known] == ["north", "south"]


def test_who_was_revoked_is_unregistered_and_new_keys_take_the_place(folder: CoordinatorFolder) -> None:
    superlink = FakeSuperLink()
    step(superlink, folder)
    old = superlink.known[0].public_key
    revoke(folder, "north", NOW)
    enroll(folder, enrollment_of("north"), NOW)
    assert step(superlink, folder) == ["north may connect no more", "north may connect"]
    assert [node.name for node in superlink.known] == ["south", "north"]
    assert old not in {node.public_key for node in superlink.known}


def test_one_hospital_s_trouble_is_not_the_others(folder: CoordinatorFolder) -> None:
    superlink = FakeSuperLink(refused_sites={"north": RunFailed("it refuses")})
    assert step(superlink, folder) == ["north cannot be let in: it refuses", "south may connect"]


def test_a_superlink_that_goes_away_is_nobody_s_trouble(folder: CoordinatorFolder) -> None:
    with pytest.raises(NoAnswer):
        step(FakeSuperLink(refused_sites={"north": NoAnswer("gone")}), folder)


@pytest.fixture
def watched(folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeSuperLink, list[str]]]:
    """A SuperLink and what is told while a registrar looks at the folder."""
    monkeypatch.setattr("server.deployment.registrar.LOOK_S", 0.01)
    superlink, told = FakeSuperLink(answers=False).place(monkeypatch, "registrar"), list[str]()
    registrar = Registrar(folder, told.append)
    registrar.start()
    yield superlink, told
    registrar.stop()
    assert not registrar.is_alive()


def soon(seen: Callable[[], object], wanted: object) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and seen() != wanted:
        time.sleep(0.01)
    assert seen() == wanted


def bound(folder: CoordinatorFolder) -> int:
    """How many hospitals the proxy lets through."""
    file = folder.path / "run" / "nginx.conf"
    return file.read_text().count('"CN=') if file.exists() else -1


def test_a_superlink_that_comes_later_learns_all(
    watched: tuple[FakeSuperLink, list[str]], folder: CoordinatorFolder
) -> None:
    superlink, told = watched
    soon(lambda: bound(folder), 2)
    assert told == []
    superlink.answers = True
    soon(lambda: told, ["north may connect", "south may connect"])
    revoke(folder, "south", NOW)
    soon(lambda: told[2:], ["south may connect no more"])
    assert bound(folder) == 1


def test_the_proxy_learns_of_a_revocation_even_where_the_superlink_does_not_answer(
    watched: tuple[FakeSuperLink, list[str]], folder: CoordinatorFolder
) -> None:
    soon(lambda: bound(folder), 2)
    revoke(folder, "south", NOW)
    soon(lambda: bound(folder), 1)
    assert not watched[0].answers


def test_a_broken_roster_is_told_once_and_mended(
    watched: tuple[FakeSuperLink, list[str]], folder: CoordinatorFolder
) -> None:
    superlink, told = watched
    superlink.answers = True
    soon(lambda: told, ["north may connect", "south may connect"])
    file = folder.path / "roster.json"
    before = file.read_text()
    file.write_text("{")
    trouble = f"{file}: is not a JSON file. Check the path."
    soon(lambda: told[2:], [trouble])
    time.sleep(0.1)
    file.write_text(before)
    revoke(folder, "north", NOW)
    soon(lambda: told[2:], [trouble, "north may connect no more"])


@contextmanager
def sleeper(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends on SIGHUP, whatever this one does, and is no nginx."""
    code = "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_DFL); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_our_nginx_is_told_to_read_again(folder: CoordinatorFolder) -> None:
    with sleeper(folder.path / "run" / "nginx.conf") as process:
        (folder.path / "run" / "nginx.pid").write_text(f"{process.pid}\n")
        reload_proxy(folder)
        assert process.wait(10) == -signal.SIGHUP


def test_a_stale_process_number_hits_nobody(folder: CoordinatorFolder) -> None:
    with sleeper() as process:
        (folder.path / "run" / "nginx.pid").write_text(f"{process.pid}\n")
        reload_proxy(folder)
        time.sleep(0.2)
        assert process.poll() is None


@pytest.mark.parametrize("content", ["", "-1", "0", "nginx", "99999999999999999999"])
def test_a_broken_process_number_hits_nobody(folder: CoordinatorFolder, content: str) -> None:
    (folder.path / "run" / "nginx.pid").write_text(content)
    reload_proxy(folder)
    (folder.path / "run" / "nginx.pid").unlink()
    reload_proxy(folder)
