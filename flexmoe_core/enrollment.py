"""How a hospital joins: what it tells the coordinator of itself, the roster made of it, and the welcome it gets.

Everything here is public. Private keys never leave the machine that made them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from pydantic import AfterValidator, AwareDatetime, Field

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import Finding, Findings, FrozenModel, SafeName, validate

LARGEST_FILE = 1 << 20
REMEDY = "Take the file that 'flexmoe-client keygen' wrote."


def _node_key(line: str) -> str:
    key = _read_public(line)
    if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1)):
        raise Findings(Finding("is not an elliptic-curve key on P-384", REMEDY))
    return _line(key)


def _identity_key(line: str) -> str:
    key = _read_public(line)
    if not isinstance(key, Ed25519PublicKey):
        raise Findings(Finding("is not an Ed25519 key", REMEDY))
    return _line(key)


def _certificate_request(text: str) -> str:
    try:
        request = x509.load_pem_x509_csr(text.encode())
        key = request.public_key()
        sound = isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
        sound = sound and request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        sound = False
    if not sound:
        raise Findings(Finding("is not a certificate request signed by its own P-256 key", REMEDY))
    return request.public_bytes(Encoding.PEM).decode()


def _certificate(text: str) -> str:
    try:
        x509.load_pem_x509_certificate(text.encode())
    except (ValueError, x509.InvalidVersion):
        raise Findings(Finding("is not a certificate", "Ask the coordinator for the file again.")) from None
    return text


NodeKey = Annotated[str, AfterValidator(_node_key)]
"""OpenSSH line, without a comment, of the key by which Flower knows a node."""
IdentityKey = Annotated[str, AfterValidator(_identity_key)]
"""OpenSSH line, without a comment, of the key that signs what a site says."""
CertificateRequest = Annotated[str, AfterValidator(_certificate_request)]
Certificate = Annotated[str, AfterValidator(_certificate)]


class Enrollment(FrozenModel):
    """What a hospital tells of itself, in the file that its engineer sends to the coordinator."""

    format: Literal[1] = 1
    site: SafeName
    node_key: NodeKey
    identity_key: IdentityKey
    certificate_request: CertificateRequest


class Member(FrozenModel):
    """A hospital on the roster; times in UTC."""

    site: SafeName
    node_key: NodeKey
    identity_key: IdentityKey
    certificate_request: CertificateRequest
    enrolled: AwareDatetime
    revoked: AwareDatetime | None = None

    @property
    def active(self) -> bool:
        """Whether its keys count."""
        return self.revoked is None


class Roster(FrozenModel):
    """Every hospital that was ever enrolled, in order; a site's last entry counts."""

    format: Literal[1] = 1
    members: tuple[Member, ...] = ()

    @property
    def active(self) -> dict[str, Member]:
        """The hospitals that may take part, by name."""
        return {member.site: member for member in self.members if member.active}


class Welcome(FrozenModel):
    """What the coordinator tells a hospital: where it is, how to know it, and who else takes part.

    ``address`` is host:port or [IPv6]:port. ``client_certificate`` is there where the coordinator asks for one.
    """

    format: Literal[1] = 1
    site: SafeName
    study: SafeName
    address: str = Field(pattern=r"^([^\s:/\[\]]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")
    certificate_authority: Certificate
    client_certificate: Certificate | None = None
    roster: Roster = Roster()

    @property
    def host(self) -> str:
        """The coordinator's name or address, an IPv6 address without its brackets."""
        return self.address.rpartition(":")[0].strip("[]")


FileT = TypeVar("FileT", bound=FrozenModel)


def read_public_file(kind: type[FileT], path: Path) -> FileT:
    """An enrollment, roster or welcome; raises InputError with everything that is wrong in it."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except OSError as error:
        remedy = "Check the path."
        raise InputError([Problem(str(path), "", f"cannot be read: {error.strerror}", remedy)]) from None
    if len(text) > LARGEST_FILE:
        what = f"is larger than {LARGEST_FILE >> 20} MiB"
        raise InputError([Problem(str(path), "", what, "Check the path.")])
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError([Problem(str(path), "", "is not a JSON file", "Check the path.")]) from None
    return validate(data, kind, str(path))


def fingerprint(line: str) -> str:
    """SHA256:... of an OpenSSH public key, as ``ssh-keygen -l`` prints it: short enough to compare by telephone."""
    blob = base64.b64decode(line.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def flower_header(node_key: str) -> str:
    """The value of the header ``flwr-public-key`` that a node with this key sends."""
    pem = _read_public(node_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(pem).decode()


def _read_public(line: str) -> EllipticCurvePublicKey | Ed25519PublicKey:
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm, IndexError):
        key = None
    if not isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey):
        raise Findings(Finding("is not an OpenSSH public key", REMEDY))
    return key


def _line(key: EllipticCurvePublicKey | Ed25519PublicKey) -> str:
    """Without a comment: the same key is the same line."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
