"""A real coordinator on this machine: SuperLink, executor and nginx, and what they let in from outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from flexmoe_core.enrollment import flower_header
from flexmoe_core.errors import RunFailed
from server.deployment.certificates import CLIENT_DAYS, KeyAndCertificate, issue_client, make_authority
from server.deployment.control import control
from server.deployment.folder import CoordinatorFolder
from server.deployment.membership import enroll, revoke
from server.deployment.proxy import FLEET_CALLS
from tests.flexmoe_core.hospital_keys import certificate_request, enrollment_of
from tests.server.deployment.coordinators import make_folder

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx", path=PATH) is None, reason="nginx is not installed"),
]
START = "from server.cli import main; main()"
PROTOBUF = {"content-type": "application/protobuf"}


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def soon(seen: Callable[[], object], within_s: float = 40.0) -> None:
    deadline = time.monotonic() + within_s
    while not seen():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@dataclass(frozen=True)
class Coordinator:
    """A folder, and the process of ``flexmoe-server start`` on it."""

    folder: CoordinatorFolder
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"https://{self.folder.settings.address}"

    def trust(self, certificate: Sequence[Path] = ()) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder.path / "authority.crt"))
        if certificate:
            context.load_cert_chain(*certificate)
        return context

    def client(self, certificate: Sequence[Path] = ()) -> httpx.Client:
        return httpx.Client(verify=self.trust(certificate), timeout=20, trust_env=False)

    def raw(self, target: str, method: str = "POST") -> int:
        """The status of a request for a target that no client would write so."""
        host, port = "127.0.0.1", self.folder.settings.outside.port
        with self.trust().wrap_socket(socket.create_connection((host, port)), server_hostname=host) as connection:
            head = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n"
            head += "Content-Type: application/protobuf\r\n\r\n"
            connection.sendall(head.encode("latin-1"))
            return int(connection.recv(4096).split()[1])

    def known(self) -> list[str]:
        try:
            with control(self.folder.settings.inside.port, self.folder.authority_certificate) as superlink:
                return sorted(node.name for node in superlink.nodes())
        except RunFailed:
            return ["no answer"]

    def log(self, name: str) -> str:
        file = self.folder.path / "logs" / name
        return file.read_text() if file.exists() else ""


def start(folder: CoordinatorFolder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, "start", str(folder.path)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )


@contextmanager
def running(path: Path, *sites: str, client_certificates: bool) -> Iterator[Coordinator]:
    outside, inside, health = free_ports(3)
    folder = make_folder(
        path,
        *sites,
        names=("127.0.0.1",),
        listen="127.0.0.1",
        port=outside,
        client_certificates=client_certificates,
        inside={"port": inside, "health_port": health},
    )
    folder.renew(datetime.now(UTC))
    coordinator = Coordinator(folder, start(folder))
    try:
        soon(lambda: coordinator.known() == sorted(sites))
        yield coordinator
    finally:
        coordinator.process.send_signal(signal.SIGTERM)
        coordinator.process.communicate(timeout=40)


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    with running(tmp_path_factory.mktemp("open") / "coordinator", "north", client_certificates=False) as one:
        yield one


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    path = tmp_path_factory.mktemp("bound") / "coordinator"
    with running(path, "north", "south", client_certificates=True) as one:
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


def written(path: Path, pair: KeyAndCertificate) -> tuple[Path, Path]:
    """Certificate and key in files."""
    (path / "tls.crt").write_bytes(pair.certificate)
    (path / "tls.key").write_bytes(pair.key)
    return path / "tls.crt", path / "tls.key"


def hospital(authority: KeyAndCertificate, site: str, now: datetime) -> KeyAndCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue_client(authority, certificate_request(key), site, now)
    return KeyAndCertificate(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), certificate.encode()
    )


def answer_to(coordinator: Coordinator, certificate: Sequence[Path], header: Mapping[str, str]) -> int:
    with coordinator.client(certificate) as client:
        url = f"{coordinator.url}/v1/fleet/pull-messages"
        answer = client.post(url, headers={**PROTOBUF, **header})
        return answer.status_code if "<html>" in answer.text else 200


def key_header(coordinator: Coordinator, site: str) -> dict[str, str]:
    return {"flwr-public-key": flower_header(coordinator.folder.roster.active[site].node_key)}


def test_a_hospital_s_own_certificate_with_its_own_key_gets_through(bound: Coordinator, tmp_path: Path) -> None:
    own = written(tmp_path, hospital(bound.folder.authority, "north", datetime.now(UTC)))
    assert answer_to(bound, own, key_header(bound, "north")) == 200


def test_another_hospital_s_key_is_refused_and_the_log_says_whose_certificate_it_was(
    bound: Coordinator, tmp_path: Path
) -> None:
    own = written(tmp_path, hospital(bound.folder.authority, "north", datetime.now(UTC)))
    assert answer_to(bound, own, key_header(bound, "south")) == 401
    assert answer_to(bound, own, {}) == 401
    soon(lambda: bound.log("proxy.log").count('"CN=north, not with its own node key" "POST') == 2, 5)


def test_no_certificate_is_refused_and_logged(bound: Coordinator) -> None:
    assert answer_to(bound, (), key_header(bound, "north")) == 400
    soon(lambda: "client sent no required SSL certificate" in bound.log("proxy.log"), 5)


def test_a_certificate_of_a_foreign_authority_is_refused_and_logged(bound: Coordinator, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    impostor = make_authority(f"{bound.folder.study.name} federation", now)
    certificate = written(tmp_path, hospital(impostor, "north", now))
    assert answer_to(bound, certificate, key_header(bound, "north")) == 400
    soon(lambda: "client SSL certificate verify error" in bound.log("proxy.log"), 5)


def test_an_expired_certificate_is_refused_and_logged(bound: Coordinator, tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=CLIENT_DAYS + 1)
    certificate = written(tmp_path, hospital(bound.folder.authority, "north", long_ago))
    assert answer_to(bound, certificate, key_header(bound, "north")) == 400
    soon(lambda: "certificate has expired" in bound.log("proxy.log"), 5)


@pytest.mark.parametrize("pair", ["authority", "server"])
def test_the_coordinator_s_own_certificates_are_no_hospital_s(bound: Coordinator, tmp_path: Path, pair: str) -> None:
    certificate = written(tmp_path, getattr(bound.folder, pair))
    assert answer_to(bound, certificate, key_header(bound, "north")) == 400


def test_a_revoked_hospital_is_cut_off_at_the_proxy_too(bound: Coordinator, tmp_path: Path) -> None:
    folder, now = bound.folder, datetime.now(UTC)
    enroll(folder, enrollment_of("west"), now)
    own, header = written(tmp_path, hospital(folder.authority, "west", now)), key_header(bound, "west")
    soon(lambda: answer_to(bound, own, header) == 200, 10)
    revoke(folder, "west", now)
    soon(lambda: answer_to(bound, own, header) == 401, 10)
    assert bound.known() == ["north", "south"]


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
