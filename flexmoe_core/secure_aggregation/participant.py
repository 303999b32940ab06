"""A site's side of the protocol: announce keys, deal shares, mask, and give the shares that unmask the sum.

Every step raises MaskingRefused where to go on could give an update away. Shapes: V numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.privacy.settings import SecureAggregation
from flexmoe_core.secure_aggregation.bounds import findings_of_parameters, smallest_sum
from flexmoe_core.secure_aggregation.keys import (
    MaskedStatement,
    Place,
    PublicKeys,
    Secrets,
    channel_key,
    digest_of_cohort,
    pair_mask_key,
    pair_sign,
    self_mask_key,
)
from flexmoe_core.secure_aggregation.memory import AFTER_ALL, Memory, MemoryFolder, Phase
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.sealing import SHARE_PATTERN, SharePair, seal, unseal
from flexmoe_core.secure_aggregation.shamir import split
from flexmoe_core.secure_aggregation.streams import Vector, add_stream
from flexmoe_core.validation import FrozenModel, SafeName

Share = Annotated[str, Field(pattern=SHARE_PATTERN)]


class UnmaskingShares(FrozenModel):
    """Shares that a site tells: of the seeds of those who masked, of the mask keys of those who did not."""

    seeds: dict[SafeName, Share] = Field(repr=False)
    mask_keys: dict[SafeName, Share] = Field(repr=False)


@dataclass(frozen=True)
class Participant:
    """One site of one run.

    ``least_sum`` is the smallest number of honest sites in a sum that the hospital accepts.
    """

    site: str
    identity: Ed25519PrivateKey
    roster: PinnedRoster
    settings: SecureAggregation
    memory: MemoryFolder
    least_sum: int = 2

    def require_sound(self) -> None:
        """Refuse a roster that does not know this site by its key, and settings that protect too little."""
        line = self.identity.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        if self.roster.keys.get(self.site) != line:
            raise MaskingRefused(f"the pinned roster does not have {self.site} with the key of this node")
        for finding in findings_of_parameters(self.settings, len(self.roster.keys)):
            raise MaskingRefused(f"{finding.place} {finding.what}")
        smallest = smallest_sum(self.settings, len(self.roster.keys))
        if smallest < self.least_sum:
            raise MaskingRefused(f"sums of {smallest} honest sites would be possible, {self.least_sum} are required")

    def announce(self, place: Place) -> PublicKeys:
        """Fresh keys for a place, which must come after all others; the same again when asked again."""
        self.require_sound()
        self._require_roster(place)
        with self.memory.alone():
            return self._announce(place)

    def _announce(self, place: Place) -> PublicKeys:
        known = self.memory.find(place)
        if known is not None and known.place == place and known.phase == "announced":
            return known.keys
        if place.order <= self.memory.last():
            raise MaskingRefused("keys for this round and attempt, or a later one, were announced before")
        secrets = Secrets.fresh()
        keys = secrets.announced(self.site, place, self.identity)
        self.memory.keep(Memory(place=place, phase="announced", keys=keys, secrets=secrets))
        self.memory.erase_before((place.attempt, 0))
        return keys

    def deal(self, place: Place, keys: Iterable[PublicKeys]) -> dict[str, bytes]:
        """Shares of this site's secrets, sealed for each other site that announced keys, by recipient. Once."""
        peers = self._verified(place, keys)
        with self.memory.alone():
            return self._deal(place, peers)

    def _deal(self, place: Place, peers: dict[str, PublicKeys]) -> dict[str, bytes]:
        known = self._known(place, ("announced", "dealt"))
        if peers.get(self.site) != known.keys:
            raise MaskingRefused("the keys of this site are missing or not those that it announced")
        if known.phase == "dealt":
            if known.peers != peers:
                raise MaskingRefused("shares for this round and attempt were dealt to others")
            return {name: bytes.fromhex(sealed) for name, sealed in known.sealed.items()}
        pairs, sealed = self._split(known, peers), {}
        assert known.secrets is not None
        for name, keys_of in peers.items():
            if name != self.site:
                key = channel_key(known.secrets.channel_key, known.keys, keys_of, self.site)
                sealed[name] = seal(pairs[name], key, place, self.site, name)
        update = {
            "phase": "dealt",
            "peers": peers,
            "sealed": {name: value.hex() for name, value in sealed.items()},
            "own": pairs[self.site],
        }
        self.memory.keep(known.model_copy(update=update))
        return sealed

    def require_cohort(self, place: Place, cohort: Collection[str]) -> None:
        """Refuse a cohort before anything is computed for it."""
        known, t = self._known(place, ("dealt",)), self.settings.threshold
        if len(set(cohort)) != len(cohort):
            raise MaskingRefused("the cohort names a site twice")
        if unknown := sorted(set(cohort) - known.peers.keys()):
            raise MaskingRefused(f"the cohort has {', '.join(unknown)}, to which no shares were dealt")
        if self.site not in cohort:
            raise MaskingRefused("this site is not in the cohort")
        if len(cohort) < t:
            raise MaskingRefused(f"the cohort has {len(cohort)} sites, {t} are needed")

    def mask(
        self, place: Place, cohort: Collection[str], sealed: Mapping[str, bytes], received: str, vector_V: Vector
    ) -> MaskedStatement:
        """Mask the vector in place, and say so. Once.

        ``sealed`` are the shares that others dealt to this site; those that cannot be opened are left out, and this
        site then has none to give. ``received`` is the SHA-256 of the request, and part of every pairwise mask.
        """
        with self.memory.alone():
            self.require_cohort(place, cohort)
            known = self._known(place, ("dealt",))
            secrets, own = known.secrets, known.own
            assert secrets is not None and own is not None
            shares = {self.site: own} | self._opened(known, cohort, sealed)
            masked = {"phase": "masked", "cohort": tuple(sorted(cohort)), "received": received, "shares": shares}
            self.memory.keep(known.model_copy(update=masked))
            self.memory.erase_before(place.order)
        add_stream(vector_V, self_mask_key(bytes.fromhex(secrets.seed), self.site, place), 1)
        for name in sorted(set(cohort) - {self.site}):
            key = pair_mask_key(secrets.mask_key, known.keys, known.peers[name], received)
            add_stream(vector_V, key, pair_sign(self.site, name))
        statement = MaskedStatement(
            site=self.site, place=place, cohort=digest_of_cohort(list(cohort), place), received=received
        )
        return statement.signed(self.identity)

    def unmask(self, place: Place, statements: Iterable[MaskedStatement]) -> UnmaskingShares:
        """One share of every site of the cohort: the seed's if it masked, the mask key's if not. Once, ever.

        A site masked if it says so, for this very cohort and request. All secrets of the place are erased first.
        """
        said = tuple(statements)
        for statement in said:
            statement.require_signature(self.roster, place)
        with self.memory.alone():
            known = self._known(place, ("masked",))
            survivors = self._survivors(known, said)
            self.memory.keep(known.erased())
        shares = known.shares
        return UnmaskingShares(
            seeds={name: pair.seed for name, pair in shares.items() if name in survivors},
            mask_keys={name: pair.mask_key for name, pair in shares.items() if name not in survivors},
        )

    def forget(self) -> None:
        """Erase all secrets of the run."""
        with self.memory.alone():
            self.memory.erase_before(AFTER_ALL)

    def _survivors(self, known: Memory, said: tuple[MaskedStatement, ...]) -> set[str]:
        """Who masked; raises MaskingRefused unless all of them masked for what this site masked for."""
        right = (digest_of_cohort(known.cohort, known.place), known.received)
        names = [statement.site for statement in said]
        if len(set(names)) != len(names) or not set(names) <= set(known.cohort):
            raise MaskingRefused("sites are said to have masked that are not in the cohort, or one twice")
        for statement in said:
            if (statement.cohort, statement.received) != right:
                raise MaskingRefused(f"{statement.site} masked for another cohort or another request")
        if len(names) < self.settings.threshold:
            raise MaskingRefused(f"{len(names)} sites masked, {self.settings.threshold} are needed")
        return set(names)

    def _require_roster(self, place: Place) -> None:
        if place.roster != self.roster.digest:
            raise MaskingRefused("the coordinator's roster is not the one that is pinned here")

    def _known(self, place: Place, phases: tuple[Phase, ...]) -> Memory:
        known = self.memory.find(place)
        if known is None or known.place != place:
            raise MaskingRefused("no keys were announced for this run, round, attempt and these settings")
        if known.phase not in phases:
            raise MaskingRefused(f"this site is past that step of the round and attempt (it is '{known.phase}')")
        return known

    def _verified(self, place: Place, keys: Iterable[PublicKeys]) -> dict[str, PublicKeys]:
        self._require_roster(place)
        peers: dict[str, PublicKeys] = {}
        for one in keys:
            one.require_signature(self.roster, place)
            if one.site in peers:
                raise MaskingRefused(f"{one.site} has two sets of keys")
            peers[one.site] = one
        if len(peers) < self.settings.threshold:
            raise MaskingRefused(f"{len(peers)} sites announced keys, {self.settings.threshold} are needed")
        return peers

    def _split(self, known: Memory, peers: Collection[str]) -> dict[str, SharePair]:
        assert known.secrets is not None
        indices = {name: self.roster.index(name) for name in peers}
        seeds, keys = (
            split(bytes.fromhex(secret), self.settings.threshold, list(indices.values()))
            for secret in (known.secrets.seed, known.secrets.mask_key)
        )
        return {
            name: SharePair(seed=seeds[index].hex(), mask_key=keys[index].hex()) for name, index in indices.items()
        }

    def _opened(self, known: Memory, cohort: Collection[str], sealed: Mapping[str, bytes]) -> dict[str, SharePair]:
        assert known.secrets is not None
        opened: dict[str, SharePair] = {}
        for name in sorted(set(cohort) & sealed.keys() - {self.site}):
            key = channel_key(known.secrets.channel_key, known.keys, known.peers[name], name)
            try:
                opened[name] = unseal(sealed[name], key, known.place, name, self.site)
            except MaskingRefused:
                continue  # one site's bad shares must not keep the others from their round
        return opened
