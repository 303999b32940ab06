"""What coordinator and hospital say of masked sums beside training and finish.

Before the first sum, and whenever the chain is broken: keys, then shares. From then on the keys of the next sum come
with each masked vector, and its shares with the answer that unmasks this one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import Field

from flexmoe_core.messages import Masked, Masking, Table, Terms
from flexmoe_core.secure_aggregation.keys import MaskedStatement, Place, PublicKeys
from flexmoe_core.secure_aggregation.participant import UnmaskingShares
from flexmoe_core.secure_aggregation.roster import PinnedRoster
from flexmoe_core.secure_aggregation.sealing import SEALED_BYTES
from flexmoe_core.validation import FrozenModel, SafeName

COUNTING: int = 0
"""The round in which sites count who could train each row: before the first one that trains."""
Sealed = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * SEALED_BYTES}}}$")]


class KeysRequest(FrozenModel):
    """Announce keys for the sum of this round."""

    terms: Terms
    round: int = Field(ge=COUNTING)
    attempt: int = Field(ge=1)


class KeysReply(FrozenModel):
    """Signed by the site."""

    site: str
    keys: PublicKeys


class SharesRequest(FrozenModel):
    """Deal shares to those who announced these keys."""

    terms: Terms
    round: int = Field(ge=COUNTING)
    attempt: int = Field(ge=1)
    keys: tuple[PublicKeys, ...]


class SharesReply(FrozenModel):
    """A site's shares by recipient, each sealed for that one, in hexadecimal."""

    site: str
    sealed: dict[SafeName, Sealed]


class CountRequest(FrozenModel):
    """Which rows of the shared tensors could your patients train? Once per run, before the first round."""

    terms: Terms
    table: Table
    masking: Masking
    round: int = Field(default=COUNTING, ge=COUNTING, le=COUNTING)
    attempt: int = Field(ge=1)


class CountReply(FrozenModel):
    """Its vector has a 1 for each row that the site's patients could train."""

    site: str
    masked: Masked


class UnmaskRequest(FrozenModel):
    """These sites masked: give the shares that take the masks off their sum, and deal shares for the next one."""

    terms: Terms
    round: int = Field(ge=COUNTING)
    attempt: int = Field(ge=1)
    statements: tuple[MaskedStatement, ...]
    keys: tuple[PublicKeys, ...] = ()


class UnmaskReply(FrozenModel):
    """``shares`` is absent where the site did not mask."""

    site: str
    shares: UnmaskingShares | None
    sealed: dict[SafeName, Sealed]


def place_of(terms: Terms, round_number: int, attempt: int, roster: PinnedRoster) -> Place:
    """What secrets of a sum are bound to."""
    config = hashlib.sha256(json.dumps(terms.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    return Place(run=terms.run, round=round_number, attempt=attempt, roster=roster.digest, config=config)
