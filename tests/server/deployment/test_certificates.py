from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    Subject,
    VerificationError,
)

from server.deployment.certificates import (
    AUTHORITY_DAYS,
    CLIENT_DAYS,
    INSIDE,
    SERVER_DAYS,
    KeyAndCertificate,
    expires,
    issue_client,
    issue_server,
    make_authority,
)
from tests.flexmoe_core.hospital_keys import certificate_request

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AUTHORITY = make_authority("trial federation", NOW)
NAMES = ("fl.example.org", "FL2.Example.org", "203.0.113.5", "2001:db8::1")


def loaded(certificate: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate)


def policy(authority: KeyAndCertificate, now: datetime) -> PolicyBuilder:
    return PolicyBuilder().store(Store([loaded(authority.certificate)])).time(now)


def verify_server(certificate: bytes, name: str, now: datetime = NOW, *between: bytes) -> None:
    subject: Subject
    try:
        subject = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name)
    verifier = policy(AUTHORITY, now).build_server_verifier(subject)
    verifier.verify(loaded(certificate), [loaded(one) for one in between])


def verify_client(certificate: bytes, now: datetime = NOW, authority: KeyAndCertificate = AUTHORITY) -> None:
    names = ExtensionPolicy.webpki_defaults_ee().may_be_present(
        x509.SubjectAlternativeName, Criticality.AGNOSTIC, None
    )
    builder = policy(authority, now).extension_policies(
        ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=names
    )
    builder.build_client_verifier().verify(loaded(certificate), [])


def client_of(
    site: str, now: datetime = NOW, authority: KeyAndCertificate = AUTHORITY, asked: str = "other"
) -> bytes:
    request = certificate_request(ec.generate_private_key(ec.SECP256R1()), asked)
    return issue_client(authority, request, site, now).encode()


@pytest.mark.parametrize("name", [*NAMES, *INSIDE])
def test_the_server_is_known_by_each_of_its_names_outside_and_inside(name: str) -> None:
    verify_server(issue_server(AUTHORITY, NAMES, NOW).certificate, name)


@pytest.mark.parametrize("name", ["example.org", "other.example.org", "203.0.113.6", "2001:db8::2"])
def test_the_server_is_not_known_by_other_names(name: str) -> None:
    with pytest.raises(VerificationError):
        verify_server(issue_server(AUTHORITY, NAMES, NOW).certificate, name)


def test_a_name_that_is_also_an_inside_one_stands_there_once() -> None:
    certificate = loaded(issue_server(AUTHORITY, ("localhost", "localhost"), NOW).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(names)) == len(INSIDE)


def test_keys_belong_to_their_certificates() -> None:
    for pair in (AUTHORITY, issue_server(AUTHORITY, NAMES, NOW)):
        assert load_pem_private_key(pair.key, None).public_key() == loaded(pair.certificate).public_key()


def test_a_renewed_certificate_is_of_the_same_authority_with_a_new_key() -> None:
    later = NOW + timedelta(days=300)
    old, new = issue_server(AUTHORITY, NAMES, NOW), issue_server(AUTHORITY, NAMES, later)
    verify_server(new.certificate, NAMES[0], later)
    assert old.key != new.key
    assert loaded(old.certificate).serial_number != loaded(new.certificate).serial_number
    assert expires(new.certificate) - expires(old.certificate) == timedelta(days=300)


def test_a_hospital_has_the_name_of_the_roster_whatever_it_asked_for() -> None:
    certificate = client_of("north-1_b", asked="south")
    verify_client(certificate)
    assert loaded(certificate).subject.rfc4514_string() == "CN=north-1_b"


def test_a_hospital_cannot_be_the_server_nor_the_server_a_hospital() -> None:
    with pytest.raises(VerificationError):
        verify_server(client_of("localhost"), "localhost")
    with pytest.raises(VerificationError):
        verify_client(issue_server(AUTHORITY, NAMES, NOW).certificate)


def test_the_authority_is_no_end() -> None:
    with pytest.raises(VerificationError):
        verify_client(AUTHORITY.certificate)
    with pytest.raises(VerificationError):
        verify_server(AUTHORITY.certificate, "localhost")


def test_an_end_cannot_sign() -> None:
    end = issue_server(AUTHORITY, NAMES, NOW)
    forged = issue_server(end, ("fl.example.org",), NOW)
    with pytest.raises(VerificationError):
        verify_server(forged.certificate, "fl.example.org", NOW, end.certificate)


def test_another_authority_of_the_same_name_does_not_count() -> None:
    impostor = make_authority("trial federation", NOW)
    verify_client(client_of("north", authority=impostor), authority=impostor)
    with pytest.raises(VerificationError):
        verify_client(client_of("north", authority=impostor))


@pytest.mark.parametrize("days", [-1, CLIENT_DAYS + 1])
def test_nothing_counts_before_or_after_its_time(days: int) -> None:
    certificate, moment = client_of("north"), NOW + timedelta(days=days)
    with pytest.raises(VerificationError):
        verify_client(certificate, moment)


def test_times_are_utc_and_leave_room_for_slow_clocks() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=9)))
    for certificate, days in (
        (make_authority("a", local).certificate, AUTHORITY_DAYS),
        (issue_server(AUTHORITY, NAMES, local).certificate, SERVER_DAYS),
        (client_of("north", local), CLIENT_DAYS),
    ):
        assert expires(certificate) == NOW + timedelta(days=days)
        assert loaded(certificate).not_valid_before_utc == NOW - timedelta(minutes=5)


@pytest.mark.parametrize("length", [63, 64])
def test_the_longest_names_fit(length: int) -> None:
    authority = make_authority("n" * length + " federation", NOW)
    verify_client(client_of("n" * length, authority=authority), authority=authority)
    issue_server(authority, (".".join(["n" * 60] * 4), "a.example.org"), NOW)
