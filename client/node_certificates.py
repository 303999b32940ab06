"""Certificates that never leave a node: for the ports on 127.0.0.1 that its own processes talk over.

The authority's key is forgotten once it has signed, so that it can sign for nobody else.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flexmoe_core.checkpoint import write_atomic

VALID = datetime.timedelta(days=3650)  # made anew at every start
LOOPBACK = ipaddress.ip_address("127.0.0.1")


@dataclass(frozen=True)
class LocalTls:
    """Files in PEM: the authority's certificate, and the certificate and key for 127.0.0.1."""

    authority: Path
    certificate: Path
    key: Path


def write_local_tls(folder: Path) -> LocalTls:
    """Write a new authority and a certificate for 127.0.0.1 into the folder, each file for its owner alone."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _sign("Flex-MoE node, this machine alone", authority_key, authority_key, None)
    certificate = _sign("127.0.0.1", key, authority_key, authority)
    files = LocalTls(folder / "local_ca.pem", folder / "local.pem", folder / "local_key.pem")
    write_atomic(files.authority, authority.public_bytes(serialization.Encoding.PEM))
    write_atomic(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    write_atomic(
        files.key,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
    return files


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signer_key: ec.EllipticCurvePrivateKey,
    signer: x509.Certificate | None,
) -> x509.Certificate:
    """The certificate of a key; without a signer that of an authority, signed by itself."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    started = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)  # a clock may be set back
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(started)
        .not_valid_after(started + VALID)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()), critical=False)
    )
    if signer is not None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(LOOPBACK)]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signer_key, hashes.SHA256())
