"""A real federation on this machine: the very commands that a coordinator and hospitals type, as processes.

Everything listens on 127.0.0.1, or on the addresses of network namespaces that a test made.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None,
    reason="nginx is not installed (Debian's package nginx-light)",
)
ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0


def program(name: str) -> list[str]:
    """A console script of this checkout."""
    package = {"flexmoe-server": "server", "flexmoe-client": "client", "flexmoe-sim": "simulations"}[name]
    return [sys.executable, "-c", f"from {package}.cli import main; main()"]


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, ready: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Wait for something to come true, and tell how many seconds it took."""
    started = time.monotonic()
    while not ready():
        assert time.monotonic() - started < patience_s, f"{what}: not within {patience_s:g} s"
        time.sleep(0.2)
    return time.monotonic() - started


@dataclass
class Running:
    """A command that runs until it is told to stop; ``within`` stands before it, as ``ip netns exec NAME`` does."""

    command: Sequence[str]
    log: Path
    within: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, its output appended to the log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.log.parent,
                env=environment(),
                start_new_session=True,
            )

    def stop(self) -> None:
        """As an engineer stops it: SIGTERM, and wait."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def kill(self) -> None:
        """SIGKILL, as the kernel or a power cut would end it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


def environment() -> dict[str, str]:
    """That of every command: this checkout first, and one thread for each process on a machine of two cores."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass
class Hospital:
    """One hospital: its data, its node folder, and its node while it runs."""

    name: str
    data: Path
    node: Path
    running: Running

    @property
    def state(self) -> Path:
        """Where the site keeps its own files."""
        return self.node / "state"

    def processes(self, name: str) -> list[int]:
        """Process ids of one of its node's services, as the kernel lists them."""
        return processes_with(name, str(self.node))


@dataclass
class Lab:
    """A coordinator's folder and some hospitals, made by the commands that make them."""

    root: Path
    study_folder: Path
    host: str = "localhost"
    listen: str = "127.0.0.1"
    client_certificates: bool = False
    within: Sequence[str] = ()
    hospitals: dict[str, Hospital] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.root / "coordinator"
        self.port, self.inside_port, health_port = free_port(), free_port(), free_port()
        options = ["--client-certificates"] if self.client_certificates else []
        self.server(
            "init",
            *("--study", str(self.study_folder / "study.toml"), "--name", self.host, "--listen", self.listen),
            *("--port", str(self.port), "--inside-port", str(self.inside_port), "--health-port", str(health_port)),
            *options,
        )
        self.coordinator = Running(
            [*program("flexmoe-server"), "start", str(self.folder)], self.root / "coordinator.log", self.within
        )

    def server(self, command: str, *options: str, timeout_s: float = 600.0) -> str:
        """Run a command of the coordinator to its end; its output."""
        return run([*program("flexmoe-server"), command, str(self.folder), *options], timeout_s)

    def admit(self, name: str, within: Sequence[str] = ()) -> Hospital:
        """Keys, enrollment, welcome, and the installed code allowed: everything before a node starts."""
        node = self.root / "nodes" / name
        run([*program("flexmoe-client"), "keygen", str(node), "--site", name])
        self.server("enroll", name, "--public-key", str(node / "enrollment.json"))
        shutil.copy(self.folder / "welcome" / f"{name}.json", node / "welcome.json")
        run([*program("flexmoe-client"), "allow", str(node)])
        data = self.study_folder / name
        study = ["--study", str(self.study_folder / "study.toml")]
        command = [*program("flexmoe-client"), "start", str(node), "--data", str(data), *study, "--device", "cpu"]
        hospital = Hospital(name, data, node, Running(command, self.root / f"{name}.log", within))
        self.hospitals[name] = hospital
        return hospital

    def pin_rosters(self) -> None:
        """Every hospital pins the coordinator's roster of now, as masked sums need it."""
        for hospital in self.hospitals.values():
            run([*program("flexmoe-client"), "roster", str(hospital.node), str(self.folder / "roster.json")])

    def status(self, run_name: str | None = None) -> dict[str, Any]:
        """What ``flexmoe-server status --json`` says."""
        options = [] if run_name is None else ["--run", run_name]
        status: dict[str, Any] = json.loads(self.server("status", "--json", *options))
        return status

    def online(self) -> set[str]:
        """The hospitals that are connected."""
        return {site["site"] for site in self.status()["sites"] if site["connection"] == "online"}

    def start_all(self) -> None:
        """Start coordinator and hospitals, and wait until all are connected."""
        self.coordinator.start()
        for hospital in self.hospitals.values():
            hospital.running.start()
        until("all hospitals online", lambda: self.online() == self.hospitals.keys())

    def submit(self, name: str, *options: str) -> None:
        """Start a run, and do not wait for it."""
        self.server("run", "--name", name, "--no-follow", *options)

    def run_folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def history(self, name: str) -> list[dict[str, Any]]:
        """The rounds of a run so far."""
        file = self.run_folder(name) / "history.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def round(self, name: str) -> int:
        """The last round that a run has finished."""
        return max((int(row["round"]) for row in self.history(name)), default=0)

    def wait_for_end(self, name: str, patience_s: float = 600.0) -> str:
        """Wait until Flower calls a run finished; its words."""
        until(f"run {name} ends", lambda: self._state(name).startswith("finished"), patience_s)
        return self._state(name)

    def _state(self, name: str) -> str:
        return str(self.status(name)["run"]["state"])

    def close(self) -> None:
        """Stop everything that was started, whatever state it is in."""
        for running in (*(hospital.running for hospital in self.hospitals.values()), self.coordinator):
            with suppress(Exception):
                running.stop()
        for pid in processes_with("", str(self.root)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def lab(root: Path, study_folder: Path, sites: Sequence[str], **options: Any) -> Iterator[Lab]:  # noqa: ANN401
    """A lab with some hospitals admitted, and nothing of it left afterwards."""
    one = Lab(root, study_folder, **options)
    try:
        for site in sites:
            one.admit(site)
        yield one
    finally:
        one.close()


def run(command: Sequence[str], timeout_s: float = 600.0, expected: int = 0) -> str:
    """Run a command to its end; its output. Fails with what it said where the exit code is another."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment(), check=False)
    assert done.returncode == expected, f"{' '.join(command[-6:])}: {done.stdout}{done.stderr}"
    return done.stdout


def processes_with(name: str, argument: str) -> list[int]:
    """Processes whose command line has a program of that name and mentions a path."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        named = not name or any(name in Path(word).name for word in words[:4])
        if named and int(folder.name) != os.getpid() and any(argument in word for word in words):
            found.append(int(folder.name))
    return sorted(found)


def facts_of(folder: Path) -> Mapping[str, Any]:
    """metrics.json of a run."""
    facts: Mapping[str, Any] = json.loads((folder / "metrics.json").read_text())
    return facts
