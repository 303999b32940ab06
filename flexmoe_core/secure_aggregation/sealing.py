"""Shares on their way through the coordinator: sealed by their sender for one recipient, with ChaCha20-Poly1305."""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import Field

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.secure_aggregation.keys import Place, bound_to
from flexmoe_core.secure_aggregation.shamir import SHARE_BYTES
from flexmoe_core.validation import FrozenModel

NONCE_BYTES: Final = 12
SEALED_BYTES: Final = NONCE_BYTES + 2 * SHARE_BYTES + 16
SHARE_PATTERN: Final = rf"^[0-9a-f]{{{2 * SHARE_BYTES}}}$"


class SharePair(FrozenModel):
    """One recipient's shares of a site's two secrets, of which it will ever tell one; in hexadecimal."""

    seed: str = Field(pattern=SHARE_PATTERN, repr=False)
    mask_key: str = Field(pattern=SHARE_PATTERN, repr=False)


def seal(pair: SharePair, key: bytes, place: Place, sender: str, recipient: str) -> bytes:
    """94 bytes that only the recipient can open, as coming from this sender at this place."""
    nonce = os.urandom(NONCE_BYTES)
    plain = bytes.fromhex(pair.seed + pair.mask_key)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, _names(place, sender, recipient))


def unseal(sealed: bytes, key: bytes, place: Place, sender: str, recipient: str) -> SharePair:
    """What ``seal`` was given; raises MaskingRefused for anything else."""
    try:
        nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        plain = ChaCha20Poly1305(key).decrypt(nonce, body, _names(place, sender, recipient))
    except (InvalidTag, ValueError):
        raise MaskingRefused(f"the shares from {sender} for {recipient} cannot be opened") from None
    if len(plain) != 2 * SHARE_BYTES:
        raise MaskingRefused(f"the shares from {sender} for {recipient} have another length")
    return SharePair(seed=plain[:SHARE_BYTES].hex(), mask_key=plain[SHARE_BYTES:].hex())


def _names(place: Place, sender: str, recipient: str) -> bytes:
    return bound_to("shares", place.words, sender, recipient)
