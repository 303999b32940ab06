"""Who belongs to the federation: enrollment, revocation, and the welcome that a hospital gets."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.enrollment import Enrollment, Member, Roster, Welcome
from flexmoe_core.errors import InputError, Problem
from server.deployment.certificates import issue_client
from server.deployment.folder import PUBLIC_MODE, CoordinatorFolder
from server.deployment.invitation import study_of


def enroll(folder: CoordinatorFolder, enrollment: Enrollment, now: datetime) -> Path:
    """Put a hospital on the roster, and write what it is to be told.

    Raises InputError where its name is taken, or one of its keys was ever seen before, on whatever name.
    """
    roster = folder.roster
    if enrollment.site in roster.active:
        remedy = f"Revoke it first: flexmoe-server revoke {folder.path} {enrollment.site}"
        raise InputError([Problem(enrollment.site, "", "is enrolled already", remedy)])
    for site in roster.active:
        if site.casefold() == enrollment.site.casefold():
            what = f"is {site} in other capitals, and the proxy does not tell them apart"
            raise InputError([Problem(enrollment.site, "", what, "Agree on another name with the hospital.")])
    for other in roster.members:
        if _public_keys(enrollment) & _public_keys(other):
            remedy = "Its engineer must make new keys: flexmoe-client keygen"
            raise InputError([Problem(enrollment.site, "", f"has a key that {other.site} had", remedy)])
    member = Member(**enrollment.model_dump(exclude={"format"}), enrolled=now.astimezone(UTC))
    folder.save_roster(Roster(members=(*roster.members, member)))
    return write_welcome(folder, member.site, now)


def revoke(folder: CoordinatorFolder, site: str, now: datetime) -> Member:
    """Strike a hospital's keys from the roster; raises InputError where it has none."""
    roster = folder.roster
    gone = active_member(roster, site).model_copy(update={"revoked": now.astimezone(UTC)})
    members = tuple(gone if one.site == site and one.active else one for one in roster.members)
    folder.save_roster(Roster(members=members))
    (folder.path / "welcome" / f"{site}.json").unlink(missing_ok=True)
    return gone


def write_welcome(folder: CoordinatorFolder, site: str, now: datetime) -> Path:
    """Write what a hospital is to be told, with a new certificate where the proxy asks for one."""
    settings, roster, authority = folder.settings, folder.roster, folder.authority
    member, certificate = active_member(roster, site), None
    if settings.outside.client_certificates:
        certificate = issue_client(authority, member.certificate_request, site, now)
    welcome = Welcome(
        site=site,
        study=study_of(folder).name,
        address=settings.address,
        certificate_authority=authority.certificate.decode(),
        client_certificate=certificate,
        roster=roster,
    )
    path = folder.path / "welcome" / f"{site}.json"
    write_atomic(path, (welcome.model_dump_json(indent=2) + "\n").encode(), PUBLIC_MODE)
    return path


def active_member(roster: Roster, site: str) -> Member:
    """A hospital that may take part; raises InputError."""
    if site not in roster.active:
        known = ", ".join(roster.active) or "nobody"
        raise InputError([Problem(site, "", "is not enrolled", f"Enrolled: {known}.")])
    return roster.active[site]


def _public_keys(of: Enrollment | Member) -> set[str]:
    tls = x509.load_pem_x509_csr(of.certificate_request.encode()).public_key()
    return {
        of.node_key,
        of.identity_key,
        tls.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    }
