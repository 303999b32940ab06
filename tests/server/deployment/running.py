"""A real coordinator on this machine, as ``flexmoe-server start`` runs it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from flexmoe_core.errors import RunFailed
from server.deployment.control import control
from server.deployment.folder import CoordinatorFolder
from tests.server.deployment.coordinators import make_folder

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
needs_nginx = pytest.mark.skipif(shutil.which("nginx", path=PATH) is None, reason="nginx is not installed")
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
