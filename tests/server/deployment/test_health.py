from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import typer
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from flexmoe_core.study import load_study
from server.deployment.certificates import KeyAndCertificate, issue_server, make_authority
from server.deployment.folder import CoordinatorFolder
from server.deployment.health import health, ill_health
from server.deployment.settings import CoordinatorSettings, InsideSettings, OutsideSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
STUDY = """
[study]
name = "toy"
[label]
name = "disease"
classes = ["absent", "present"]
[[modality]]
name = "labs"
kind = "tabular"
encoder = "local"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    (tmp_path / "study.toml").write_text(STUDY)
    settings = CoordinatorSettings(
        outside=OutsideSettings(names=("fl.example.org",), port=free_port()),
        inside=InsideSettings(port=free_port(), health_port=free_port()),
    )
    study = load_study(tmp_path / "study.toml")
    return CoordinatorFolder.create(tmp_path / "coordinator", settings, study, datetime.now(UTC))


@contextmanager
def superlink(folder: CoordinatorFolder, status: int = SERVING) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    servicer = grpc_health.HealthServicer()
    servicer.set("", status)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{folder.settings.inside.health_port}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


@contextmanager
def proxy(folder: CoordinatorFolder, shown: KeyAndCertificate | None) -> Iterator[None]:
    """Something that listens where nginx would: it shows a certificate, or knows no TLS at all."""
    context = None
    if shown is not None:
        (folder.path / "shown.pem").write_bytes(shown.key + shown.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder.path / "shown.pem")
    with socket.create_server(("127.0.0.1", folder.settings.outside.port)) as listening:

        def answer() -> None:
            try:
                connection, _ = listening.accept()
                with connection:
                    if context is None:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    else:
                        context.wrap_socket(connection, server_side=True).close()
            except OSError:
                pass  # the other side has hung up on us

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            with socket.socket() as knock:
                knock.connect_ex(("127.0.0.1", folder.settings.outside.port))
            thread.join()


def test_healthy_when_superlink_and_proxy_answer(folder: CoordinatorFolder) -> None:
    with superlink(folder), proxy(folder, folder.server):
        assert ill_health(folder) == ""


def test_a_superlink_that_is_down_is_named(folder: CoordinatorFolder) -> None:
    with proxy(folder, folder.server):
        assert "SuperLink" in ill_health(folder)


def test_a_superlink_that_does_not_serve_is_named(folder: CoordinatorFolder) -> None:
    with superlink(folder, NOT_SERVING), proxy(folder, folder.server):
        assert "does not serve" in ill_health(folder)


def test_a_proxy_that_is_down_is_named(folder: CoordinatorFolder) -> None:
    with superlink(folder):
        assert "does not answer TLS" in ill_health(folder)


def test_a_proxy_without_tls_is_no_proxy(folder: CoordinatorFolder) -> None:
    with superlink(folder), proxy(folder, None):
        assert "does not answer TLS" in ill_health(folder)


def test_another_authoritys_certificate_is_refused(folder: CoordinatorFolder) -> None:
    now = datetime.now(UTC)
    other = issue_server(make_authority("another", now), ["fl.example.org"], now)
    with superlink(folder), proxy(folder, other):
        assert "certificate is refused" in ill_health(folder)


def test_an_expired_certificate_is_refused_with_the_remedy(folder: CoordinatorFolder) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=500)
    expired = issue_server(folder.authority, ["fl.example.org"], long_ago)
    with superlink(folder), proxy(folder, expired):
        reason = ill_health(folder)
    assert "expired" in reason and "renew" in reason


def test_a_certificate_for_another_name_is_refused(folder: CoordinatorFolder) -> None:
    other = issue_server(folder.authority, ["other.example.org"], datetime.now(UTC))
    with superlink(folder), proxy(folder, other):
        assert "certificate is refused" in ill_health(folder)


def test_the_command_exits_with_1_and_says_why(folder: CoordinatorFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        health(folder.path)
    assert ended.value.exit_code == 1
    assert "SuperLink" in capsys.readouterr().err


def test_the_command_is_silent_when_all_is_well(
    folder: CoordinatorFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with superlink(folder), proxy(folder, folder.server):
        health(folder.path)
    assert capsys.readouterr() == ("", "")
