"""The coordinator's side: from shares to secrets, and from the sum of masked vectors to the sum itself.

Shapes: V numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Final

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.secure_aggregation.keys import (
    PublicKeys,
    hash_of_seed,
    pair_mask_key,
    pair_sign,
    public_half,
    self_mask_key,
)
from flexmoe_core.secure_aggregation.participant import UnmaskingShares
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.shamir import combine
from flexmoe_core.secure_aggregation.streams import Vector, add_stream

MOST_TRIES: Final = 500
"""Choices of shares for one secret, where some sites may have given wrong ones."""


@dataclass(frozen=True)
class Unmasking:
    """One round's cohort by name, with what each announced, those who masked, and the request that they received."""

    cohort: Mapping[str, PublicKeys]
    survivors: Collection[str]
    received: str
    threshold: int
    roster: PinnedRoster

    def unmask(self, total_V: Vector, answers: Mapping[str, UnmaskingShares]) -> None:
        """Turn the sum of the survivors' masked vectors into the sum of their vectors, in place.

        Raises MaskingRefused where too few answers hold usable shares of a secret.
        """
        seeds = {name: self._seed(name, answers) for name in sorted(self.survivors)}
        gone = {name: self._mask_key(name, answers) for name in sorted(self.cohort.keys() - set(self.survivors))}
        for name, seed in seeds.items():
            add_stream(total_V, self_mask_key(seed, name, self.cohort[name].place), -1)
        for name, private in gone.items():
            for survivor in sorted(self.survivors):
                key = pair_mask_key(private, self.cohort[name], self.cohort[survivor], self.received)
                add_stream(total_V, key, -pair_sign(survivor, name))

    def _seed(self, name: str, answers: Mapping[str, UnmaskingShares]) -> bytes:
        shares = {site: one.seeds[name] for site, one in answers.items() if name in one.seeds}
        return self._recovered(name, shares, lambda secret: hash_of_seed(secret) == self.cohort[name].seed_hash)

    def _mask_key(self, name: str, answers: Mapping[str, UnmaskingShares]) -> str:
        shares = {site: one.mask_keys[name] for site, one in answers.items() if name in one.mask_keys}
        right = self.cohort[name].mask_key
        return self._recovered(name, shares, lambda secret: public_half(secret.hex()) == right).hex()

    def _recovered(self, name: str, shares: Mapping[str, str], is_right: Callable[[bytes], bool]) -> bytes:
        by_index = {self.roster.index(site): bytes.fromhex(share) for site, share in sorted(shares.items())}
        for chosen in islice(combinations(by_index.items(), self.threshold), MOST_TRIES):
            try:
                secret = combine(dict(chosen))
            except ValueError:
                continue
            if is_right(secret):
                return secret
        what = f"{len(shares)} shares of a secret of {name} came, and {self.threshold} right ones are needed"
        raise MaskingRefused(what)
