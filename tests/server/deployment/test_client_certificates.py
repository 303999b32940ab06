"""A real proxy that asks hospitals for certificates: who gets through, and what the log says of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from flexmoe_core.enrollment import flower_header
from server.deployment.certificates import CLIENT_DAYS, KeyAndCertificate, issue_client, make_authority
from server.deployment.invitation import study_of
from server.deployment.membership import enroll, revoke
from tests.flexmoe_core.hospital_keys import certificate_request, enrollment_of
from tests.server.deployment.running import PROTOBUF, Coordinator, needs_nginx, running, soon

pytestmark = [pytest.mark.slow, needs_nginx]


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    path = tmp_path_factory.mktemp("bound") / "coordinator"
    with running(path, "north", "south", client_certificates=True) as one:
        yield one


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
    impostor = make_authority(f"{study_of(bound.folder).name} federation", now)
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
    soon(lambda: bound.known() == ["north", "south"], 10)
