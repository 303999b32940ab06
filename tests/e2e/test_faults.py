"""What goes wrong in a real federation: training goes on or resumes, nothing is lost, and the history says why."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.figures import note
from tests.e2e.lab import Lab, lab, needs_nginx, processes_with, program, run, until

pytestmark = [pytest.mark.e2e, needs_nginx]
SITES = ("site-1", "site-2", "site-3")
ROUNDS = 6
SETTINGS = (
    *("--rounds", str(ROUNDS), "--set", "federation.quorum=2", "--set", "federation.deadline_s=120"),
    *("--set", "federation.min_aggregated=0.8", "--set", "method.curriculum.generalize_rounds=1"),
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk or cut a network")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small hospitals of generated patients."""
    folder = tmp_path_factory.mktemp("data") / "study"
    run([*program("flexmoe-sim"), "prepare", "synthetic", "--sites", "3", "--out", str(folder)])
    return folder


@pytest.fixture
def running(data: Path, tmp_path: Path) -> Iterator[Lab]:
    """All of it running, and a run in its second round at least."""
    with lab(tmp_path, data, SITES) as one:
        one.start_all()
        one.submit("faulty", *SETTINGS)
        until("the first round", lambda: one.round("faulty") >= 1)
        yield one


def end(one: Lab, fault: str, seconds: float) -> list[str]:
    """The run ends well; the sites that its history names as absent or failed, round by round."""
    assert one.wait_for_end("faulty") == "finished"
    history = one.history("faulty")
    assert [row["round"] for row in history] == list(range(1, ROUNDS + 1))
    named = [site for row in history for site in (*row["missing"], *row["failed"], *row["dropped"])]
    lost = sum(not row["aggregated"] for row in history)
    note(fault, ROUNDS, lost, seconds)
    assert lost <= 1
    return named


def test_a_hospital_is_killed_in_mid_round_and_returns(running: Lab) -> None:
    hospital = running.hospitals["site-2"]
    hospital.running.kill()
    started = time.monotonic()
    until("nothing of the node is left", lambda: not processes_with("supernode.py", str(hospital.node)), 20)
    hospital.running.start()
    until("it is online again", lambda: "site-2" in running.online(), 180)
    named = end(running, "a hospital's node killed, and started again", time.monotonic() - started)
    assert set(named) <= {"site-2"}
    assert list(hospital.state.glob("*/bundle")), "it was there at the end"


def test_the_superlink_is_killed_in_mid_round(running: Lab) -> None:
    (superlink,) = processes_with("flower-superlink", str(running.folder))
    os.kill(superlink, signal.SIGKILL)
    started, before = time.monotonic(), running.round("faulty")
    until("another round", lambda: running.round("faulty") > before, 240)
    end(running, "the SuperLink killed, and started again by its supervisor", time.monotonic() - started)
    for hospital in running.hospitals.values():
        assert list(hospital.state.glob("*/bundle"))


def test_the_proxy_is_frozen(running: Lab) -> None:
    workers = processes_with("nginx", str(running.folder))
    children = [int(child) for pid in workers for child in _children(pid)]
    for pid in {*workers, *children}:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(80)
    for pid in {*workers, *children}:
        os.kill(pid, signal.SIGCONT)
    thawed = time.monotonic()
    until("all online again", lambda: running.online() == set(SITES), 240)
    end(running, "nginx frozen for 80 s", time.monotonic() - thawed)


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def test_the_coordinator_is_moved_to_a_fresh_machine_with_the_run_folder_only(data: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    with lab(old, data, SITES) as one:
        one.start_all()
        one.submit("faulty", *SETTINGS)
        until("the second round", lambda: one.round("faulty") >= 2)
        one.coordinator.kill()
        lost_at = time.monotonic()
        for hospital in one.hospitals.values():
            hospital.running.stop()
        kept = one.round("faulty")
        with lab(new, data, ()) as other:
            shutil.copytree(one.run_folder("faulty"), other.run_folder("faulty"))
            for name, hospital in one.hospitals.items():
                other.server("enroll", name, "--public-key", str(hospital.node / "enrollment.json"))
                shutil.copy(other.folder / "welcome" / f"{name}.json", hospital.node / "welcome.json")
                other.hospitals[name] = hospital
            other.start_all()
            other.server("resume", "--run", "faulty", "--no-follow")
            until("a further round", lambda: other.round("faulty") > kept, 240)
            seconds = time.monotonic() - lost_at
            assert not end(other, "coordinator moved to a fresh machine with the run folder only", seconds)


def fill(folder: Path) -> Path:
    """A file that takes all that is left of a disk."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 64 MB in place of a folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@needs_root
def test_a_hospital_whose_disk_is_full_is_named_and_comes_back(data: Path, tmp_path: Path) -> None:
    with lab(tmp_path, data, SITES) as one:
        hospital = one.hospitals["site-3"]
        with small_disk(hospital.state):
            one.start_all()
            one.submit("faulty", *SETTINGS)
            until("the first round", lambda: one.round("faulty") >= 1)
            filler = fill(hospital.state)
            until("it has failed", lambda: any("site-3" in row["failed"] for row in one.history("faulty")), 120)
            filler.unlink()
            freed, before = time.monotonic(), one.round("faulty")
            until("the next rounds", lambda: one.round("faulty") >= min(before + 2, ROUNDS), 120)
            seconds = time.monotonic() - freed
            assert "site-3" in one.history("faulty")[-1]["answered"]
            named = end(one, "the disk of a hospital full, then freed", seconds)
            assert set(named) == {"site-3"}
            assert list(hospital.state.glob("*/bundle"))
            verified = run([*program("flexmoe-client"), "audit", "verify", str(hospital.state)])
            assert "unbroken" in verified
            one.close()
