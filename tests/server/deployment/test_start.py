"""A real SuperLink, executor and nginx, and what they let in from outside."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from server.deployment.membership import enroll, revoke
from server.deployment.proxy import FLEET_CALLS
from tests.flexmoe_core.hospital_keys import enrollment_of
from tests.server.deployment.running import PROTOBUF, Coordinator, needs_nginx, running, soon, start

pytestmark = [pytest.mark.slow, needs_nginx]


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    with running(tmp_path_factory.mktemp("open") / "coordinator", "north", client_certificates=False) as one:
        yield one


@pytest.mark.parametrize("call", FLEET_CALLS)
def test_fleet_calls_reach_the_superlink_which_asks_for_a_key(open_to_all: Coordinator, call: str) -> None:
    with open_to_all.client() as client:
        answer = client.post(f"{open_to_all.url}/v1/fleet/{call}?x=1", headers=PROTOBUF)
    assert answer.status_code == 401
    assert "<html>" not in answer.text  # nginx would say it in HTML


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/health",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/pull-messages/../../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet/%252e%252e/control/list-nodes",
        "/v1/%63ontrol/list-nodes",
        "//v1//control//list-nodes",
        "/v1/control/list-nodes;/v1/fleet/pull-messages",
        "/v1/control/list-nodes#/v1/fleet/pull-messages",
        "/v1/control/list-nodes?/v1/fleet/pull-messages",
        "/V1/FLEET/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/pull-messages%2f..%2f..%2f..%2fdocs",
        "https://127.0.0.1/v1/control/list-nodes",
    ],
)
def test_nothing_else_is_there_from_outside(open_to_all: Coordinator, target: str) -> None:
    for method in ("POST", "GET"):
        assert open_to_all.raw(target, method) == 404


@pytest.mark.parametrize("target", ["/v1/control/x/../../fleet/pull-messages", "//v1/fleet//pull%2dmessages"])
def test_a_fleet_call_that_is_written_otherwise_arrives_as_that_call(open_to_all: Coordinator, target: str) -> None:
    assert open_to_all.raw(target) == 401


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_a_fleet_call_is_a_post(open_to_all: Coordinator, method: str) -> None:
    assert open_to_all.raw("/v1/fleet/pull-messages", method) == 503


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(open_to_all: Coordinator) -> None:
    largest_chunk, beyond = bytes(5 * 2**20 + 4096), bytes(8 * 2**20 + 1)
    with open_to_all.client() as client:
        url = f"{open_to_all.url}/v1/fleet/push-object"
        answers = [client.post(url, content=body, headers=PROTOBUF) for body in (largest_chunk, beyond)]
    assert answers[0].status_code == 400
    assert "Invalid protobuf payload" in answers[0].text  # so the SuperLink has read it
    assert answers[1].status_code == 413


def test_plain_http_is_refused(open_to_all: Coordinator) -> None:
    with httpx.Client(trust_env=False) as client:
        answer = client.post(open_to_all.url.replace("https", "http") + "/v1/fleet/pull-messages")
    assert answer.status_code == 400
    assert "plain HTTP request was sent to HTTPS port" in answer.text


def test_inside_the_control_api_is_not_reached_without_tls(open_to_all: Coordinator) -> None:
    port = open_to_all.folder.settings.inside.port
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get(f"http://127.0.0.1:{port}/docs")


def test_hospitals_come_and_go_while_it_runs(open_to_all: Coordinator) -> None:
    folder = open_to_all.folder
    enroll(folder, enrollment_of("west"), datetime.now(UTC))
    soon(lambda: open_to_all.known() == ["north", "west"], 10)
    revoke(folder, "west", datetime.now(UTC))
    soon(lambda: open_to_all.known() == ["north"], 10)


def test_a_second_start_on_the_same_folder_is_refused(open_to_all: Coordinator) -> None:
    second = start(open_to_all.folder)
    _, said = second.communicate(timeout=40)
    assert second.returncode == 2
    assert "is run by another 'start' already. Stop that one first." in said
    assert open_to_all.known() == ["north"]


def descendants(pid: int) -> set[int]:
    shown = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in shown.splitlines()[1:]]
    found, grew = {pid}, True
    while grew:
        below = {child for child, parent in pairs if parent in found}
        grew, found = not below <= found, found | below
    return found - {pid}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_sigterm_ends_everything_and_it_can_be_started_again(tmp_path: Path) -> None:
    with running(tmp_path / "coordinator", client_certificates=False) as one:
        started = descendants(one.process.pid)
        assert len(started) >= 5  # a warden, SuperLink, executor, nginx and its worker
        one.process.send_signal(signal.SIGTERM)
        one.process.wait(40)
        assert one.process.returncode == 0
        assert [pid for pid in started if alive(pid)] == []
        assert not (one.folder.path / "run" / "nginx.pid").exists()
        again = Coordinator(one.folder, start(one.folder))
        try:
            soon(lambda: again.known() == [])
        finally:
            again.process.send_signal(signal.SIGTERM)
            again.process.communicate(timeout=40)


def test_what_it_writes_is_private(open_to_all: Coordinator) -> None:
    folder = open_to_all.folder.path
    lax = [
        file
        for name in ("state", "flower", "logs", "run")
        for file in (folder / name).rglob("*")
        if not file.is_dir() and file.stat().st_mode & 0o077 and file.name != "lock"
    ]
    assert lax == []
