"""What a hospital would send, made of any keys."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from flexmoe_core.enrollment import Enrollment

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey | rsa.RSAPrivateKey


def public_line(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def certificate_request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str = "anyone") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def public_half(site: str = "north", **changes: object) -> dict[str, object]:
    """The content of an enrollment.json of new keys."""
    return {
        "format": 1,
        "site": site,
        "node_key": public_line(ec.generate_private_key(ec.SECP384R1())),
        "identity_key": public_line(Ed25519PrivateKey.generate()),
        "certificate_request": certificate_request(ec.generate_private_key(ec.SECP256R1())),
    } | changes


def enrollment_of(site: str = "north", **changes: object) -> Enrollment:
    return Enrollment.model_validate(public_half(site, **changes))
