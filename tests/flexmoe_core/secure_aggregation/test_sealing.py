import os

import pytest

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.secure_aggregation.keys import Place
from flexmoe_core.secure_aggregation.sealing import SEALED_BYTES, SharePair, seal, unseal
from tests.flexmoe_core.secure_aggregation.sites import CONFIG, RUN

PLACE = Place(run=RUN, round=1, attempt=1, roster="b" * 64, config=CONFIG)
PAIR = SharePair(seed="01" * 33, mask_key="02" * 33)
KEY = os.urandom(32)


def test_only_the_recipient_named_opens_it_as_coming_from_the_sender_named_at_the_place_named() -> None:
    sealed = seal(PAIR, KEY, PLACE, "north", "south")
    assert len(sealed) == SEALED_BYTES
    assert unseal(sealed, KEY, PLACE, "north", "south") == PAIR
    for place, sender, recipient in (
        (PLACE, "east", "south"),
        (PLACE, "north", "east"),
        (PLACE, "south", "north"),
        *((PLACE.model_copy(update={name: 2}), "north", "south") for name in ("round", "attempt")),
        (PLACE.model_copy(update={"run": "f" * 32}), "north", "south"),
    ):
        with pytest.raises(MaskingRefused, match="cannot be opened"):
            unseal(sealed, KEY, place, sender, recipient)


@pytest.mark.parametrize("place", [0, 12, 40, SEALED_BYTES - 1])
def test_a_changed_bit_is_noticed(place: int) -> None:
    sealed = bytearray(seal(PAIR, KEY, PLACE, "north", "south"))
    sealed[place] ^= 1
    with pytest.raises(MaskingRefused, match="cannot be opened"):
        unseal(bytes(sealed), KEY, PLACE, "north", "south")


def test_the_same_shares_are_sealed_differently_each_time_and_never_shown() -> None:
    assert seal(PAIR, KEY, PLACE, "north", "south") != seal(PAIR, KEY, PLACE, "north", "south")
    assert "0101" not in repr(PAIR) and "0202" not in repr(PAIR)
