"""A certificate authority of the federation's own: one certificate for the coordinator, one for each hospital."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS, SERVER_DAYS, CLIENT_DAYS = 3650, 397, 397
LEEWAY = timedelta(minutes=5)
"""For clocks that are behind."""
INSIDE = ("localhost", "127.0.0.1", "::1")
"""What the proxy and the coordinator's own processes call the SuperLink."""


@dataclass(frozen=True)
class KeyAndCertificate:
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


def make_authority(name: str, now: datetime) -> KeyAndCertificate:
    """A self-signed authority that may sign certificates of ends only."""
    key = ec.generate_private_key(ec.SECP384R1())
    builder = (
        _builder(_subject(name), _subject(name), key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return KeyAndCertificate(_private_pem(key), _pem(builder.sign(key, SHA256())))


def issue_server(authority: KeyAndCertificate, names: Sequence[str], now: datetime) -> KeyAndCertificate:
    """A new key and certificate for the coordinator's outside names or addresses, and the inside ones."""
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys((*names, *INSIDE))])
    builder = (
        _builder(_subject(names[0]), _issuer(authority), key.public_key(), now, SERVER_DAYS)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return KeyAndCertificate(_private_pem(key), _sign_end(builder, authority))


def issue_client(authority: KeyAndCertificate, request: str, site: str, now: datetime) -> str:
    """A certificate for a hospital's TLS key under the name that the roster has for it, whatever the request says."""
    key = x509.load_pem_x509_csr(request.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "keygen makes no other"
    builder = _builder(_subject(site), _issuer(authority), key, now, CLIENT_DAYS).add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
    )
    return _sign_end(builder, authority).decode()


def expires(certificate: bytes) -> datetime:
    """When a PEM certificate ends, in UTC."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _sign_end(builder: x509.CertificateBuilder, authority: KeyAndCertificate) -> bytes:
    key = load_pem_private_key(authority.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return _pem(builder.sign(key, SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - LEEWAY)
        .not_valid_after(now.astimezone(UTC) + timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _issuer(authority: KeyAndCertificate) -> x509.Name:
    return x509.load_pem_x509_certificate(authority.certificate).subject


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
