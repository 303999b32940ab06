"""The node of a hospital, started by the real command against a real coordinator on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flexmoe_core.app_folder import write_app_folder
from flexmoe_core.study import load_study
from server.run_store import RunStore
from server.settings import settings_with
from simulations.datasets.synthetic import prepare_synthetic
from tests.e2e.coordinator import ROOT, Coordinator, new_authority, running_coordinator, write_node_folder

pytestmark = pytest.mark.slow

CLIENT = [sys.executable, "-c", "from client.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SITE, STUDY = "hospital-1", "synthetic"


def client(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLIENT, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def until(condition: Callable[[], bool], patience_s: float, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.2)


def status(node: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((node / "run" / "status.json").read_text())
        return found
    except FileNotFoundError:
        return {"facts": {"session": False, "trouble": ""}, "services": []}


def service(node: Path, name: str) -> dict[str, Any]:
    return next((one for one in status(node)["services"] if one["name"] == name), {"pid": None, "reason": ""})


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@contextmanager
def started(node: Path, data: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*CLIENT, "start", str(node), "--data", str(data), "--device", "cpu"]
    with (node.parent / f"{node.name}.out").open("wb") as out:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()


def logs(node: Path) -> str:
    return "\n".join(f"== {file.name}\n{text(file)}" for file in sorted((node / "logs").glob("*.log")))


def connected(node: Path) -> None:
    until(lambda: bool(status(node)["facts"]["session"]), 40, lambda: logs(node))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / STUDY
    prepare_synthetic(folder, sites=1, modalities=2, patients_per_site=60, classes=2, missing=0.2, seed=0)
    return folder


@pytest.fixture(scope="module")
def site(study: Path) -> Path:
    return next(file.parent for file in study.glob("*/site.toml"))


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    with running_coordinator(tmp_path_factory.mktemp("coordinator")) as running:
        yield running


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, study: Path, site: Path) -> Iterator[Path]:
    """A node whose SuperNode was just killed; what becomes of it takes a minute, while other tests run.

    It has a coordinator of its own, as another would wait for the answers of a node that it believes to be there.
    """
    name = load_study(study / "study.toml").name
    folder = tmp_path_factory.mktemp("killed")
    (folder / "coordinator").mkdir()
    with running_coordinator(folder / "coordinator") as coordinator:
        node = write_node_folder(folder / "node", coordinator.authority, coordinator.address, site.name, name)
        coordinator.register(node, site.name)
        with started(node, site):
            connected(node)
            os.kill(service(node, "supernode")["pid"], signal.SIGKILL)
            yield node


def run_of(tmp_path: Path, coordinator: Coordinator, study: Path, app: Path) -> tuple[dict[str, Any], Path]:
    overrides = ["federation.rounds=1", "federation.deadline_s=60"]
    store = RunStore.create(tmp_path / "run", load_study(study / "study.toml"), settings_with(overrides, "small"))
    settings = {"run-folder": str(store.folder), "expected-sites": 1}
    return coordinator.finished(coordinator.submit(app, **settings), 90), store.folder


@pytest.mark.usefixtures("killed")
def test_a_run_of_an_allowed_bundle_and_none_of_another(
    tmp_path: Path, coordinator: Coordinator, study: Path, site: Path
) -> None:
    name = load_study(study / "study.toml").name
    node = write_node_folder(tmp_path / "node", coordinator.authority, coordinator.address, site.name, name)
    coordinator.register(node, site.name)
    app = write_app_folder(tmp_path)
    assert client("allow", node).returncode == 0
    with started(node, site):
        connected(node)
        assert client("health", node).returncode == 0

        told, folder = run_of(tmp_path / "allowed", coordinator, study, app)
        assert told["status"] == "finished:completed", (told, logs(node))
        assert (folder / "metrics.json").exists()
        shown = client("status", node)
        assert shown.returncode == 0, shown.stdout
        assert "1 trained" in shown.stdout and "last answer" in shown.stdout

        marker = tmp_path / "marker"
        with (app / "client" / "app.py").open("a") as code:
            code.write(f"\nPath({str(marker)!r}).touch()\n")
        told, _ = run_of(tmp_path / "refused", coordinator, study, app)
        assert told["status"] == "finished:failed"
        assert "not on the site's list" in told["status-details"], told
        assert "refused a bundle that is not on this site's list" in text(node / "state" / "site.log")
        assert not marker.exists()
        words = text(node / "logs" / "standby.log").split()
        assert words.count("Successfully") == 3, "unpacked once a message"
        assert "not on this site's list" in text(node / "logs" / "node.log"), "the engineer is told"
        assert not list((node / "flower").rglob("app.py")), "nothing of a bundle is left behind"
    assert client("status", node).returncode == 1


def test_an_unknown_key_a_wrong_authority_and_no_coordinator_are_told_apart(
    tmp_path: Path, coordinator: Coordinator, study: Path, site: Path
) -> None:
    name = load_study(study / "study.toml").name
    cases = {
        "unknown": (coordinator.authority, coordinator.address, "does not know this node's key"),
        "forged": (new_authority(), coordinator.address, "does not have a certificate of the authority"),
        "absent": (coordinator.authority, "127.0.0.1:9", "cannot be reached"),
    }
    with ExitStack() as running:
        nodes = []
        for case, (authority, address, words) in cases.items():
            node = write_node_folder(tmp_path / case, authority, address, site.name, name)
            running.enter_context(started(node, site))
            nodes.append((node, words))
        for node, words in nodes:
            until(lambda node=node, words=words: words in logs(node), 40, lambda node=node: logs(node))  # type: ignore[misc]
            shown = client("status", node)
            assert shown.returncode == 1 and words in shown.stdout
        health = client("health", node)
        assert health.returncode == 1 and words in health.stderr


def test_a_tunnel_presents_the_sites_certificate(
    tmp_path: Path, coordinator: Coordinator, study: Path, site: Path
) -> None:
    name = load_study(study / "study.toml").name
    node = write_node_folder(
        tmp_path / "node", coordinator.authority, coordinator.address, site.name, name, with_certificate=True
    )
    coordinator.register(node, "hospital-tunnel")
    with started(node, site):
        connected(node)


def test_a_killed_supernode_comes_back(killed: Path) -> None:
    until(lambda: bool(status(killed)["facts"]["session"]), 100, lambda: logs(killed))
    told = text(killed / "logs" / "node.log")
    assert "supernode is restarted: it ended with signal SIGKILL; next try in 5 s" in told
    assert (
        "still holds the old session, for up to a minute after a node was killed or cut off; next try in 10 s" in told
    )
    assert told.count("connected to the coordinator") == 2


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, study: Path, site: Path) -> None:
    node = write_node_folder(tmp_path / "node", new_authority(), "127.0.0.1:9", site.name, "synthetic")
    (node / "node_key").chmod(0o644)
    done = client("start", node, "--data", site)
    assert done.returncode == 2
    assert f"chmod 600 {node / 'node_key'}" in done.stderr
