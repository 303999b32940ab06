"""What a site announces of its secrets for one round, and what it says when it has masked: both signed.

Each site has, for one round and attempt, two X25519 key pairs (of its masks, and of the channel by which shares
reach it) and the seed of its self-mask.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Annotated, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import Field

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.shamir import SECRET_BYTES
from flexmoe_core.secure_aggregation.streams import derive_key
from flexmoe_core.validation import FrozenModel, SafeName

PURPOSE: Final = "flexmoe secure aggregation 1"
"""Keeps keys and signatures from meaning anything else."""
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


def bound_to(what: str, *parts: object) -> bytes:
    """Bytes that name a purpose and all that it is bound to; other parts give other bytes."""
    return json.dumps([PURPOSE, what, *parts], sort_keys=True, separators=(",", ":")).encode()


class Place(FrozenModel):
    """Where in a run secrets are used, once; with the SHA-256 of the roster, and of the run's terms (``config``)."""

    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    round: int = Field(ge=0)
    attempt: int = Field(ge=1)
    roster: Hex32
    config: Hex32

    @property
    def order(self) -> tuple[int, int]:
        """Later ones are larger: attempts first, for a coordinator that comes back goes on with another."""
        return self.attempt, self.round

    @property
    def words(self) -> dict[str, str | int]:
        """What keys and signatures are bound to."""
        return self.model_dump()


class _Signed(FrozenModel):
    """Something that a site signs with its long-term identity."""

    site: SafeName
    place: Place
    signature: Hex64 = "0" * 128

    def signed(self, identity: Ed25519PrivateKey) -> Self:
        """The same, with the signature of the site."""
        return self.model_copy(update={"signature": identity.sign(self._text()).hex()})

    def require_signature(self, roster: PinnedRoster, place: Place) -> None:
        """Raise MaskingRefused unless a site on the roster signed this for this place."""
        if self.site not in roster.keys:
            raise MaskingRefused(f"{self.site} is not on the pinned roster")
        if self.place != place:
            raise MaskingRefused(f"what {self.site} signed is for another run, round, attempt, roster or settings")
        key = load_ssh_public_key(roster.keys[self.site].encode())
        assert isinstance(key, Ed25519PublicKey), "the roster admits no other"
        try:
            key.verify(bytes.fromhex(self.signature), self._text())
        except InvalidSignature:
            raise MaskingRefused(f"{self.site} did not sign what is said to come from it") from None

    def _text(self) -> bytes:
        return bound_to(f"signed {type(self).__name__}", self.model_dump(exclude={"signature"}))


class PublicKeys(_Signed):
    """The public halves of a site's keys, and the hash of its self-mask's seed, by which a recovered one is known."""

    mask_key: Hex32
    channel_key: Hex32
    seed_hash: Hex32


class MaskedStatement(_Signed):
    """A site masked a vector for this cohort, after it had received the request with this SHA-256."""

    cohort: Hex32
    received: Hex32


class Secrets(FrozenModel):
    """What a site must never tell, in hexadecimal: both private keys, and the seed of the self-mask."""

    mask_key: Hex32 = Field(repr=False)
    channel_key: Hex32 = Field(repr=False)
    seed: Hex32 = Field(repr=False)

    @classmethod
    def fresh(cls) -> Secrets:
        """From the operating system."""
        return cls(**{name: os.urandom(SECRET_BYTES).hex() for name in cls.model_fields})

    def announced(self, site: str, place: Place, identity: Ed25519PrivateKey) -> PublicKeys:
        """What all others are told."""
        keys = PublicKeys(
            site=site,
            place=place,
            mask_key=public_half(self.mask_key),
            channel_key=public_half(self.channel_key),
            seed_hash=hash_of_seed(bytes.fromhex(self.seed)),
        )
        return keys.signed(identity)


def public_half(private: str) -> str:
    """The public key of an X25519 private key, both in hexadecimal."""
    return X25519PrivateKey.from_private_bytes(bytes.fromhex(private)).public_key().public_bytes_raw().hex()


def hash_of_seed(seed: bytes) -> str:
    """By which a recovered seed is known; it says nothing of 256 random bits."""
    return hashlib.sha256(bound_to("seed") + seed).hexdigest()


def digest_of_cohort(cohort: tuple[str, ...] | list[str], place: Place) -> str:
    """SHA-256 of the names of a round's cohort."""
    return hashlib.sha256(bound_to("cohort", place.words, sorted(cohort))).hexdigest()


def agreed(private: str, public: str) -> bytes:
    """The shared secret of X25519; raises MaskingRefused for a public key of small order."""
    try:
        own = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
        return own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    except ValueError:
        raise MaskingRefused("a public key is one with which there is no secret") from None


def pair_mask_key(private: str, own: PublicKeys, other: PublicKeys, received: str) -> bytes:
    """Key of the mask that two sites have in common; both get the same if they received the same request."""
    names, keys = sorted([own.site, other.site]), sorted([own.mask_key, other.mask_key])
    info = bound_to("pairwise mask", own.place.words, received, names, keys)
    return derive_key(agreed(private, other.mask_key), info)


def pair_sign(site: str, other: str) -> int:
    """Whether a site adds (1) or subtracts (-1) the mask that it has in common with another."""
    return 1 if site < other else -1


def self_mask_key(seed: bytes, site: str, place: Place) -> bytes:
    """Key of a site's own mask."""
    return derive_key(seed, bound_to("self-mask", place.words, site))


def channel_key(private: str, own: PublicKeys, other: PublicKeys, sender: str) -> bytes:
    """Key that seals what one of the two sends the other."""
    info = bound_to("channel", own.place.words, sender, sorted([own.channel_key, other.channel_key]))
    return derive_key(agreed(private, other.channel_key), info)
