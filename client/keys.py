"""A hospital's keys: made once, on its own machine, and public halves to send to the coordinator.

Flower knows the node by an elliptic-curve key, the coordinator its answers by an Ed25519 key, and a proxy its
connection by a TLS key.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.enrollment import Enrollment
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import validate

NODE_KEY, IDENTITY_KEY, TLS_KEY = "node_key", "identity_key", "tls_key"
ENROLLMENT = "enrollment.json"
PUBLIC_MODE, FOLDER_MODE = 0o644, 0o700

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def make_keys(folder: Path, site: str) -> Enrollment:
    """Make all keys of a node folder (made if absent), private ones for their owner alone, and what to send away.

    Raises InputError where there are keys already: to make new ones is to become another node.
    """
    _require_no_keys(folder)
    node, identity, tls = (
        ec.generate_private_key(ec.SECP384R1()),
        Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
    )
    public = {
        "site": site,
        "node_key": _public_line(node),
        "identity_key": _public_line(identity),
        "certificate_request": _certificate_request(tls, site),
    }
    enrollment = validate(public, Enrollment, "--site")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
        folder.chmod(FOLDER_MODE)
        write_atomic(folder / NODE_KEY, _private(node, PrivateFormat.OpenSSH))
        write_atomic(folder / IDENTITY_KEY, _private(identity, PrivateFormat.OpenSSH))
        write_atomic(folder / TLS_KEY, _private(tls, PrivateFormat.PKCS8))
        write_atomic(folder / ENROLLMENT, (enrollment.model_dump_json(indent=2) + "\n").encode(), PUBLIC_MODE)
    except OSError as error:
        what = f"cannot hold keys: {error.strerror}"
        raise InputError([Problem(str(folder), "", what, "Name a folder that you may write to.")]) from None
    return enrollment


def _require_no_keys(folder: Path) -> None:
    try:
        there = any((folder / name).exists() for name in (NODE_KEY, IDENTITY_KEY, TLS_KEY, ENROLLMENT))
    except OSError:
        return  # to write there will fail, and say why
    if there:
        remedy = "Choose another folder. New keys mean a new enrollment."
        raise InputError([Problem(str(folder), "", "holds keys already", remedy)])


def _private(key: PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _public_line(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _certificate_request(key: ec.EllipticCurvePrivateKey, site: str) -> str:
    # validation refuses a name that cannot stand here, together with everything else that it finds
    common_name = site.encode("ascii", "replace").decode()[:64] or "-"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    return request.public_bytes(Encoding.PEM).decode()
