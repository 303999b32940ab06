"""Ledgers for tests, and what is charged to them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.ledger import Caps, ChargePlace, PrivacyLedger
from flexmoe_core.privacy.events import SampledGaussian

DELTA = 1e-3
NO_CAPS = Caps(None, None, DELTA)
ROUND = SampledGaussian(sampling_rate=0.1, noise_multiplier=2.0, steps=20)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def place(round_number: int = 1, study: str = "heart", attempt: int = 1) -> ChargePlace:
    request = hashlib.sha256(f"{study} {round_number} {attempt}".encode()).hexdigest()
    return ChargePlace(study, "ab" * 16, "train", round_number, attempt, request)


def new_ledger(state: Path, key: Ed25519PrivateKey = KEY) -> PrivacyLedger:
    state.mkdir(exist_ok=True)
    return PrivacyLedger.start(state, key, "the first study", (), {})


def charge_round(ledger: PrivacyLedger, round_number: int = 1, study: str = "heart") -> None:
    ledger.charge(ROUND, place(round_number, study), DELTA, NO_CAPS)
