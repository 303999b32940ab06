"""A SuperLink on 127.0.0.1 with TLS and SuperNode authentication, and node folders that belong to it."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.keys import TLS_KEY, make_keys
from simulations.engines.process_family import end_family

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
PEM = serialization.Encoding.PEM
NO_PASSWORD = serialization.NoEncryption()


@dataclass(frozen=True)
class Authority:
    """A certificate authority."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(PEM).decode()

    def issue(self, name: str, key: ec.EllipticCurvePrivateKey) -> str:
        """A certificate for a name, valid on 127.0.0.1, as PEM."""
        return _certificate(name, key, self.key, self.certificate.subject).public_bytes(PEM).decode()


def new_authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(key, _certificate("test authority", key, key, None))


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, issuer: x509.Name | None
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(names, critical=False)
        .sign(signer, hashes.SHA256())
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, NO_PASSWORD)


def private(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_node_folder(
    folder: Path, authority: Authority, address: str, site: str, study: str, *, with_certificate: bool = False
) -> Path:
    """A node folder as keygen and the coordinator's admission leave it."""
    enrollment = make_keys(folder, site)
    (folder / "node_key.pub").write_text(enrollment.node_key)
    tls_key = serialization.load_pem_private_key((folder / TLS_KEY).read_bytes(), password=None)
    assert isinstance(tls_key, ec.EllipticCurvePrivateKey)
    welcome = {
        "format": 1,
        "site": site,
        "study": study,
        "address": address,
        "certificate_authority": authority.pem,
        "client_certificate": authority.issue(site, tls_key) if with_certificate else None,
    }
    (folder / "welcome.json").write_text(json.dumps(welcome))
    return folder


@dataclass(frozen=True)
class Coordinator:
    """A running SuperLink and what is needed to ask it."""

    folder: Path
    authority: Authority
    address: str
    environment: dict[str, str]

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run Flower's own tool."""
        done = subprocess.run(
            [SCRIPTS / "flwr", *arguments, "--format", "json"],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["success"], answer
        return answer

    def register(self, node: Path, name: str) -> None:
        """Admit a node's key."""
        self.flwr("supernode", "register", str(node / "node_key.pub"), "lab", "--name", name)

    def submit(self, app: Path, **settings: object) -> str:
        """Start a run and answer its id."""
        config = self.folder / "run-config.toml"
        config.write_text(tomli_w.dumps(settings))
        return str(self.flwr("run", str(app), "lab", "--run-config", str(config))["run-id"])

    def finished(self, run: str, patience_s: float = 60.0) -> dict[str, Any]:
        """What Flower tells of a run when it has ended."""
        deadline = time.monotonic() + patience_s
        while True:
            told: dict[str, Any] = self.flwr("ls", "lab", "--run-id", run)["runs"][0]
            if str(told["status"]).startswith("finished"):
                return told
            assert time.monotonic() < deadline, (told, self.log())
            time.sleep(2.0)  # asking takes a process of its own

    def log(self) -> str:
        """The SuperLink's output."""
        return (self.folder / "superlink.log").read_text()


@contextmanager
def running_coordinator(folder: Path) -> Iterator[Coordinator]:
    """Start a SuperLink in the folder, and end it with all that it started."""
    authority, key, port = new_authority(), ec.generate_private_key(ec.SECP256R1()), free_port()
    private(folder / "server.key", key_pem(key))
    (folder / "server.crt").write_text(authority.issue("localhost", key))
    (folder / "ca.crt").write_text(authority.pem)
    address = f"127.0.0.1:{port}"
    connection = {"address": address, "root-certificates": str(folder / "ca.crt")}
    (folder / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "lab", "lab": connection}}))
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
    }
    command = [SCRIPTS / "flower-superlink", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"]
    command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _await_port(process, port)
        yield Coordinator(folder, authority, address, environment)
    finally:
        end_family(f"FLWR_HOME={folder}")
        process.wait()


def _await_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the SuperLink did not start")
