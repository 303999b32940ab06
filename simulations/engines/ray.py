"""A run in Flower's own simulation engine, which spreads sites over cores, GPUs and machines with Ray.

Left to itself, ``flwr run`` starts a SuperLink that nobody owns, on a fixed port, with files under ~/.flwr.
Here each run has a SuperLink of its own, whose port, folder and processes are gone when the run is.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import tomli_w
from flwr.app import UserConfigValue

from flexmoe_core.errors import RunFailed
from simulations.engines.process_family import end_family

QUIET_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
CONNECTION = "simulation"
GRACE_S = 30.0  # so that what went wrong can still be asked when the time is over
POLL_S = 1.5  # asking takes a process of its own, and most of a second


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink of our own and the environment that its command-line tool needs to find it."""

    home: Path
    environment: Mapping[str, str]
    log: Path
    deadline: float

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Run the ``flwr`` tool and return its answer in JSON. Raises RunFailed."""
        answer: dict[str, Any] = json.loads(self.flwr(*arguments, "--format", "json"))
        if not answer["success"]:  # the exit status does not tell
            raise self.failure(f"flwr {arguments[0]} failed: {answer.get('error-message', answer)}")
        return answer

    def flwr(self, *arguments: str) -> str:
        """Run the ``flwr`` tool and return what it prints. Raises RunFailed."""
        try:
            done = subprocess.run(
                ["flwr", *arguments],
                env=self.environment,
                cwd=self.home,
                capture_output=True,
                text=True,
                check=False,
                timeout=max(GRACE_S, self.deadline - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            raise self.failure(f"flwr {arguments[0]} did not end in time") from None
        if done.returncode != 0:
            raise self.failure(f"flwr {arguments[0]} failed: {(done.stdout + done.stderr).strip()}")
        return done.stdout

    def failure(self, what: str) -> RunFailed:
        """Error that names the log."""
        return RunFailed(f"Flower simulation: {what}. See the log: {self.log}")


def run_ray(
    app_folder: Path,
    run_config: Mapping[str, UserConfigValue],
    supernodes: int,
    *,
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    total_cpus: int | None = None,
    timeout_s: float,
) -> None:
    """Run the Apps of ``app_folder`` (see `write_app_folder`) with ``supernodes`` sites, to the end.

    The keys of ``run_config`` must be declared in the folder's pyproject.toml; relative paths in it mean
    nothing to the Apps. ``total_cpus`` limits Ray (None: all). Every process started here has ended on return.

    Raises RunFailed, naming a log that is kept, if the run ends in any way but ``finished:completed`` or
    takes longer than ``timeout_s`` seconds.
    """
    if supernodes < 1:
        raise ValueError(f"a federation needs at least one site, got {supernodes}")
    resources = {
        "num-supernodes": supernodes,
        "client-resources-num-cpus": cpus_per_client,
        "client-resources-num-gpus": gpus_per_client,
    }
    if total_cpus is not None:
        resources["init-args-num-cpus"] = total_cpus
    with _own_superlink(timeout_s) as superlink:
        config = superlink.home / "run-config.toml"
        config.write_text(tomli_w.dumps(dict(run_config)))
        submitted = superlink.ask(
            "run",
            str(app_folder.resolve()),
            CONNECTION,
            "--run-config",
            str(config),
            "--federation-config",
            " ".join(f"{key}={value}" for key, value in resources.items()),
        )
        run_id = submitted["run-id"]
        run = _await_end(superlink, run_id)
        if run["status"] != "finished:completed":
            with superlink.log.open("a") as log:
                log.write(superlink.flwr("log", run_id, CONNECTION, "--show"))
            finished = "the run ended as" if _has_finished(run) else f"after {timeout_s:g} s the run was still"
            raise superlink.failure(f"{finished} {run['status']}: {run['status-details']}")


def _await_end(superlink: SuperLink, run_id: str) -> dict[str, Any]:
    """Return what Flower tells of a run when it has finished, or when its time is over."""
    while True:
        run: dict[str, Any] = superlink.ask("ls", CONNECTION, "--run-id", run_id)["runs"][0]
        if _has_finished(run) or time.monotonic() > superlink.deadline:
            return run
        time.sleep(POLL_S)


def _has_finished(run: dict[str, Any]) -> bool:
    return str(run["status"]).startswith("finished:")


@contextmanager
def _own_superlink(timeout_s: float) -> Iterator[SuperLink]:
    """Start a SuperLink; in the end, end it and all that it started, and keep its log only after an error."""
    home = Path(tempfile.mkdtemp(prefix="flexmoe-ray-"))
    port = _free_port()
    superlink = SuperLink(
        home=home,
        environment={
            **os.environ,
            **QUIET_SWITCHES,
            "FLWR_HOME": str(home),
            "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
        },
        log=home.with_suffix(".log"),
        deadline=time.monotonic() + timeout_s,
    )
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    config = {"superlink": {"default": CONNECTION, CONNECTION: connection}}
    (home / "config.toml").write_text(tomli_w.dumps(config))
    process = _start(superlink, port)
    try:
        _wait_until_healthy(superlink, process, port)
        yield superlink
        superlink.log.unlink()
    finally:
        end_family(f"FLWR_HOME={home}")
        process.terminate()  # where processes have no readable environment; else it has ended
        process.wait()
        shutil.rmtree(home)


def _start(superlink: SuperLink, port: int) -> subprocess.Popen[bytes]:
    with superlink.log.open("wb") as log:
        return subprocess.Popen(
            # without a database it keeps the models in flight in memory
            ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)],
            env=superlink.environment,
            cwd=superlink.home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it in order
        )


def _wait_until_healthy(superlink: SuperLink, process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None and time.monotonic() < superlink.deadline:
        with suppress(URLError, TimeoutError), urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0):
            return
        time.sleep(0.1)
    raise superlink.failure("its SuperLink did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
