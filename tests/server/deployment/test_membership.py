from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from flexmoe_core.enrollment import Roster, Welcome, read_public_file
from flexmoe_core.errors import InputError
from server.deployment.folder import CoordinatorFolder
from server.deployment.invitation import study_of
from server.deployment.membership import enroll, revoke, write_welcome
from tests.flexmoe_core.hospital_keys import enrollment_of, public_half
from tests.server.deployment.coordinators import NOW, make_folder


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return make_folder(tmp_path / "coordinator")


def test_an_enrolled_hospital_is_on_the_roster_and_welcome(folder: CoordinatorFolder) -> None:
    enrollment = enrollment_of("north-1_b")
    welcome = read_public_file(Welcome, enroll(folder, enrollment, NOW))
    member = folder.roster.active["north-1_b"]
    assert member.model_dump(exclude={"enrolled", "revoked"}) == enrollment.model_dump(exclude={"format"})
    assert (member.enrolled, member.revoked) == (NOW, None)
    assert (welcome.site, welcome.study, welcome.address) == (
        "north-1_b",
        study_of(folder).name,
        "fl.example.org:443",
    )
    assert welcome.certificate_authority.encode() == folder.authority_certificate
    assert welcome.client_certificate is None
    assert welcome.roster == folder.roster


@pytest.mark.parametrize(
    ("name", "address"), [("203.0.113.5", "203.0.113.5:443"), ("2001:db8::1", "[2001:db8::1]:443")]
)
def test_a_coordinator_without_a_name_is_known_by_its_address(tmp_path: Path, name: str, address: str) -> None:
    folder = make_folder(tmp_path / "coordinator", names=(name,))
    assert read_public_file(Welcome, enroll(folder, enrollment_of(), NOW)).address == address


def test_a_certificate_comes_with_the_welcome_where_the_proxy_asks_for_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator", client_certificates=True)
    enrollment = enrollment_of("north")
    welcome = read_public_file(Welcome, enroll(folder, enrollment, NOW))
    assert welcome.client_certificate is not None
    certificate = x509.load_pem_x509_certificate(welcome.client_certificate.encode())
    assert certificate.subject.rfc4514_string() == "CN=north"
    assert certificate.public_key() == x509.load_pem_x509_csr(enrollment.certificate_request.encode()).public_key()
    later = read_public_file(Welcome, write_welcome(folder, "north", NOW + timedelta(days=300)))
    assert later.client_certificate not in (None, welcome.client_certificate)


def test_a_name_is_taken_once(folder: CoordinatorFolder) -> None:
    enroll(folder, enrollment_of("north"), NOW)
    with pytest.raises(InputError, match=r"is enrolled already\. Revoke it first"):
        enroll(folder, enrollment_of("north"), NOW)


def test_names_that_the_proxy_cannot_tell_apart_are_refused(folder: CoordinatorFolder) -> None:
    enroll(folder, enrollment_of("North"), NOW)
    with pytest.raises(InputError, match="is North in other capitals"):
        enroll(folder, enrollment_of("north"), NOW)
    assert list(folder.roster.active) == ["North"]


@pytest.mark.parametrize("key", ["node_key", "identity_key", "certificate_request"])
@pytest.mark.parametrize("revoked", [False, True])
def test_a_key_counts_once_even_after_it_was_revoked(folder: CoordinatorFolder, key: str, revoked: bool) -> None:
    first = public_half("north")
    enroll(folder, enrollment_of(**first), NOW)
    if revoked:
        revoke(folder, "north", NOW)
    shown = f"{first[key]} a comment" if key != "certificate_request" else first[key]
    for site in ("south", "north") if revoked else ("south",):
        with pytest.raises(InputError, match="has a key that north had"):
            enroll(folder, enrollment_of(site, **{key: shown}), NOW)


def test_who_is_revoked_may_come_back_with_new_keys(folder: CoordinatorFolder) -> None:
    welcome = enroll(folder, enrollment_of("north"), NOW)
    enroll(folder, enrollment_of("south"), NOW)
    later = NOW + timedelta(days=1)
    gone = revoke(folder, "north", later)
    assert gone.revoked == later
    assert list(folder.roster.active) == ["south"]
    assert not welcome.exists()
    enroll(folder, enrollment_of("north"), later)
    assert list(folder.roster.active) == ["south", "north"]
    assert [member.site for member in folder.roster.members] == ["north", "south", "north"]
    revoke(folder, "north", later + timedelta(days=1))
    assert [member.revoked for member in folder.roster.members] == [later, None, later + timedelta(days=1)]


def test_who_is_not_enrolled_cannot_be_revoked_or_renewed(folder: CoordinatorFolder) -> None:
    with pytest.raises(InputError, match=r"north: is not enrolled\. Enrolled: nobody"):
        revoke(folder, "north", NOW)
    enroll(folder, enrollment_of("south"), NOW)
    with pytest.raises(InputError, match=r"north: is not enrolled\. Enrolled: south"):
        write_welcome(folder, "north", NOW)


def test_a_broken_roster_is_never_replaced_by_an_empty_one(folder: CoordinatorFolder) -> None:
    (folder.path / "roster.json").write_text("{")
    with pytest.raises(InputError, match=r"roster\.json"):
        enroll(folder, enrollment_of(), NOW)
    assert (folder.path / "roster.json").read_text() == "{"


def test_fifty_hospitals_fit(folder: CoordinatorFolder) -> None:
    sites = [f"site-{number}" for number in range(50)]
    for site in sites:
        last = enroll(folder, enrollment_of(site), NOW)
    assert list(read_public_file(Welcome, last).roster.active) == sites
    assert Roster.model_validate_json(folder.roster.model_dump_json()) == folder.roster
