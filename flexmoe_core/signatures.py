"""What a hospital signs: that this answer is its own, to this question."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NewType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from flexmoe_core.errors import InputError, Problem

Digest = NewType("Digest", str)
PURPOSE = b"flexmoe reply 1\n"
"""Keeps a signature from meaning anything else, whatever else the key may sign one day."""


def digest_of(data: bytes) -> Digest:
    """The SHA-256 of some bytes, in hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Statement:
    """``site`` answered ``reply`` to ``request``, a question of that kind; its audit record ended with ``record``.

    The request names run, round and attempt, so an answer to another of them, or of another site, does not pass.
    """

    site: str
    question: str
    request: Digest
    reply: Digest
    record: str

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """64 bytes."""
        return key.sign(self._text())

    def is_signed(self, signature: bytes, identity_key: str) -> bool:
        """Whether the owner of the public key (an OpenSSH line) made this statement."""
        key = load_ssh_public_key(identity_key.encode())
        assert isinstance(key, Ed25519PublicKey), "the roster admits no other"
        try:
            key.verify(signature, self._text())
        except InvalidSignature:
            return False
        return True

    def _text(self) -> bytes:
        return PURPOSE + json.dumps(asdict(self), sort_keys=True).encode()


def read_identity_key(path: Path) -> Ed25519PrivateKey:
    """The private key in an OpenSSH file; raises InputError where there is none."""
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        remedy = "Name the file identity_key that 'flexmoe-client keygen' wrote."
        raise InputError([Problem(str(path), "", "is not a readable Ed25519 key without a password", remedy)])
    return key
