"""Sites that take part in masked sums, and a coordinator that carries their messages, in one process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flexmoe_core.privacy.settings import SecureAggregation
from flexmoe_core.secure_aggregation.keys import MaskedStatement, Place, PublicKeys
from flexmoe_core.secure_aggregation.memory import MemoryFolder
from flexmoe_core.secure_aggregation.participant import Participant, UnmaskingShares
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.streams import Vector
from flexmoe_core.secure_aggregation.unmasking import Unmasking
from tests.flexmoe_core.hospital_keys import public_line

RUN, CONFIG, RECEIVED = "0123456789abcdef" * 2, "c" * 64, "e" * 64
NOBODY: frozenset[str] = frozenset()


@dataclass
class Sites:
    """All sites of a roster, and what a coordinator has collected of a round."""

    participants: dict[str, Participant]
    roster: PinnedRoster
    threshold: int
    keys: dict[str, PublicKeys] = field(default_factory=dict)
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict)
    masked: dict[str, Vector] = field(default_factory=dict)
    statements: dict[str, MaskedStatement] = field(default_factory=dict)
    answers: dict[str, UnmaskingShares] = field(default_factory=dict)

    def place(self, round_number: int = 1, attempt: int = 1) -> Place:
        return Place(run=RUN, round=round_number, attempt=attempt, roster=self.roster.digest, config=CONFIG)

    def exchange(self, place: Place, no_keys: Collection[str] = (), no_shares: Collection[str] = ()) -> None:
        """Keys, then shares; the sites named do not come that far."""
        self.keys = {name: one.announce(place) for name, one in self.participants.items() if name not in set(no_keys)}
        self.sealed = {
            name: self.participants[name].deal(place, self.keys.values())
            for name in self.keys
            if name not in set(no_shares)
        }

    @property
    def cohort(self) -> list[str]:
        return sorted(self.sealed)

    def shares_for(self, name: str) -> dict[str, bytes]:
        return {sender: sealed[name] for sender, sealed in self.sealed.items() if name in sealed}

    def mask(
        self,
        place: Place,
        vectors: Mapping[str, Vector],
        silent: Collection[str] = (),
        received: Mapping[str, str] | None = None,
    ) -> None:
        """Everybody masks; what the silent ones send arrives too late."""
        self.masked, self.statements = {}, {}
        for name in self.cohort:
            vector_V = vectors[name].copy()
            request = (received or {}).get(name, RECEIVED)
            said = self.participants[name].mask(place, self.cohort, self.shares_for(name), request, vector_V)
            self.masked[name], self.statements[name] = vector_V, said
        self.survivors = [name for name in self.cohort if name not in set(silent)]

    def unmask(self, place: Place, silent: Collection[str] = ()) -> Vector:
        said = [self.statements[name] for name in self.survivors]
        self.answers = {
            name: self.participants[name].unmask(place, said) for name in self.survivors if name not in set(silent)
        }
        total_V = np.sum([self.masked[name] for name in self.survivors], axis=0, dtype=np.uint64)
        cohort = {name: self.keys[name] for name in self.cohort}
        Unmasking(cohort, self.survivors, RECEIVED, self.threshold, self.roster).unmask(total_V, self.answers)
        return total_V


def make_sites(folder: Path, number: int, threshold: int, colluding: int = 0) -> Sites:
    names = [f"site-{index:02d}" for index in range(number)]
    identities = {name: Ed25519PrivateKey.generate() for name in names}
    roster = PinnedRoster({name: public_line(key) for name, key in identities.items()})
    settings = SecureAggregation(threshold=threshold, colluding=colluding)
    participants = {
        name: Participant(name, key, roster, settings, MemoryFolder(folder / name))
        for name, key in identities.items()
    }
    return Sites(participants, roster, threshold)


def random_vectors(names: Collection[str], numbers: int, seed: int = 0) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 2**64, numbers, dtype=np.uint64) for name in names}
