import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.combinations import NO_SLOT, CombinationTable
from tests.flexmoe_core.cohorts import table_of

MODALITIES = 5
FULL = (1 << MODALITIES) - 1
MASKS = st.sets(st.integers(1, FULL), max_size=12)


def place_one(table: CombinationTable, mask: int) -> tuple[int, bool, bool, list[int]]:
    placement = table.place(torch.tensor([mask]))
    return (
        int(placement.expert_B),
        bool(placement.full_B),
        bool(placement.generalist_B),
        placement.slots_BM[0].tolist(),
    )


def nearest(mask: int, known: list[int]) -> int:
    """Fewest differing modalities, supersets first, lowest index: one condition after the other."""
    fewest = min(bin(mask ^ other).count("1") for other in known)
    closest = [other for other in known if bin(mask ^ other).count("1") == fewest]
    supersets = [other for other in closest if mask | other == other]
    return (supersets or closest)[0]


@settings(max_examples=40, deadline=None)
@given(masks=MASKS)
def test_the_full_set_comes_first_then_larger_ones_then_lower_masks(masks: set[int]) -> None:
    table = table_of(masks, MODALITIES)
    assert table.masks[0] == FULL
    assert set(table.masks) == masks | {FULL}
    keys = [(-bin(mask).count("1"), mask) for mask in table.masks]
    assert keys == sorted(keys)
    assert table.experts[0] == 0


@settings(max_examples=40, deadline=None)
@given(sites=st.lists(MASKS, max_size=4), experts=st.integers(1, 8))
def test_experts_go_by_number_of_sites_then_size_then_mask(sites: list[set[int]], experts: int) -> None:
    announced = {f"site{index}": dict.fromkeys(masks, 5) for index, masks in enumerate(sites)}
    table = CombinationTable.build(MODALITIES, experts, announced, min_full=1)
    expert_of = dict(zip(table.masks, table.experts, strict=True))
    partial = sorted(
        table.masks[1:], key=lambda mask: (-sum(mask in site for site in sites), -mask.bit_count(), mask)
    )
    owners = [FULL, *partial[: experts - 1]]
    assert [expert_of[mask] for mask in owners] == list(range(len(owners)))
    in_table_order = [mask for mask in table.masks if mask in owners]
    for mask in partial[experts - 1 :]:
        assert expert_of[mask] == expert_of[nearest(mask, in_table_order)]


def test_who_shares_an_expert_with_whom() -> None:
    announced = {"a": {0b011: 10, 0b001: 10}, "b": {0b001: 9}, "c": {0b001: 5, 0b110: 6}}
    table = CombinationTable.build(3, 3, announced, min_full=1)
    assert table.masks == (0b111, 0b011, 0b110, 0b001)
    # 001 is at three sites; 011 is the lower of two equals; 110 is one modality away from the full set.
    assert table.experts == (0, 2, 0, 1)


def test_a_superset_is_preferred_to_an_equally_near_subset() -> None:
    table = table_of([0b001], 3)
    assert table.experts == (0, 1)
    assert [place_one(table, mask)[0] for mask in (0b011, 0b101, 0b001)] == [0, 0, 1]


@settings(max_examples=40, deadline=None)
@given(masks=MASKS)
def test_every_combination_uses_the_rows_of_the_nearest_one_that_lacks_the_same(masks: set[int]) -> None:
    table = table_of(masks, MODALITIES)
    for mask in range(1, FULL + 1):
        expert, full, _, slots = place_one(table, mask)
        assert expert == table.experts[table.masks.index(nearest(mask, list(table.masks)))]
        assert full == (mask == FULL)
        for m, slot in enumerate(slots):
            lacking = [known for known in table.masks if not known >> m & 1]
            if mask >> m & 1 or not lacking:
                assert slot == NO_SLOT
            else:
                assert table.slots[slot] == (nearest(mask, lacking), m)


def test_no_row_is_borrowed_from_a_superset_that_observes_the_modality() -> None:
    table = table_of([0b011], 3)
    assert place_one(table, 0b001)[3] == [NO_SLOT, NO_SLOT, table.slots.index((0b011, 2))]
    assert place_one(table, 0b110)[3] == [NO_SLOT, NO_SLOT, NO_SLOT]


def test_slots_exist_for_the_table_alone() -> None:
    table = table_of([0b011, 0b001], 3)
    assert table.slots == ((0b011, 2), (0b001, 1), (0b001, 2))
    assert table_of([], 4).slots == ()


def test_all_63_combinations_of_six_modalities_have_a_place() -> None:
    table = table_of(range(1, 64), 6, experts=16)
    placement = table.place(torch.arange(1, 64))
    assert len(table.masks) == 63
    for index, mask in enumerate(range(1, 64)):
        slots = placement.slots_BM[index].tolist()
        assert [table.slots[slot] for slot in slots if slot != NO_SLOT] == [
            (mask, m) for m in range(6) if not mask >> m & 1
        ]
    assert set(placement.expert_B.tolist()) == set(range(16))


def test_place_repeats_selects_and_accepts_nobody() -> None:
    table = table_of([0b01, 0b10], 2)
    masks_B = torch.tensor([0b10, 0b11, 0b01, 0b11, 0b10])
    placement = table.place(masks_B)
    for index, mask in enumerate(masks_B.tolist()):
        one = placement.select(torch.tensor([index]))
        assert (int(one.expert_B), bool(one.full_B), bool(one.generalist_B), one.slots_BM[0].tolist()) == place_one(
            table, mask
        )
    nobody = table.place(masks_B[:0])
    assert (nobody.expert_B.shape, nobody.slots_BM.shape) == ((0,), (0, 2))
    assert nobody.expert_B.dtype == nobody.slots_BM.dtype == torch.int64


def test_a_single_modality_is_always_full() -> None:
    table = table_of([1], 1)
    assert (table.masks, table.experts, table.slots, table.generalists) == ((1,), (0,), (), (1,))
    assert place_one(table, 1) == (0, True, True, [NO_SLOT])


def test_a_declared_table_holds_what_was_declared_whatever_sites_announce() -> None:
    announced = {"a": {0b001: 50, 0b011: 9}, "b": {0b011: 9}}
    table = CombinationTable.build(3, 2, announced, min_full=8, declared=[0b011, 0b100])
    assert table.masks == (0b111, 0b011, 0b100)
    assert table.experts == (0, 1, 0)


@pytest.mark.parametrize(
    ("announced", "generalists"),
    [
        ({"a": {0b111: 8}}, (0b111,)),
        ({"a": {0b111: 7, 0b011: 8, 0b110: 9, 0b001: 90}}, (0b011, 0b110)),
        ({"a": {0b111: 7}, "b": {0b111: 7, 0b001: 8}}, (0b001,)),
        ({"a": {0b011: 7}, "b": {0b110: 7, 0b010: 30}, "c": {0b110: 8}}, (0b110,)),
        ({"a": {0b011: 7}}, (0b111,)),
        ({}, (0b111,)),
    ],
)
def test_who_teaches_first_where_too_few_are_full(
    announced: dict[str, dict[int, int]], generalists: tuple[int, ...]
) -> None:
    table = CombinationTable.build(3, 4, announced, min_full=8)
    assert table.generalists == generalists
    assert table.place(torch.arange(1, 8)).generalist_B.tolist() == [mask in generalists for mask in range(1, 8)]


@settings(max_examples=30, deadline=None)
@given(masks=MASKS, experts=st.integers(1, 6))
def test_json_round_trip(masks: set[int], experts: int) -> None:
    table = table_of(masks, MODALITIES, experts)
    assert CombinationTable.from_json(json.loads(json.dumps(table.to_json()))) == table


VALID: dict[str, Any] = {"modalities": 2, "masks": [3, 1, 2], "experts": [0, 1, 0], "generalists": [3]}


@pytest.mark.parametrize(
    "change",
    [
        {"modalities": 0},
        {"modalities": True},
        {"modalities": 2.0},
        {"modalities": "2"},
        {"modalities": 10**12},
        {"masks": []},
        {"masks": [1, 2, 3]},
        {"masks": [3, 2, 1]},
        {"masks": [3, 1, 1]},
        {"masks": [3, 1, 0]},
        {"masks": [3, 1, 7]},
        {"masks": [3, 1, -1]},
        {"masks": [3, 1, True]},
        {"masks": "312"},
        {"masks": None},
        {"experts": [0, 1]},
        {"experts": [0, 1, -1]},
        {"experts": [0, 1, 0.5]},
        {"generalists": []},
        {"generalists": [4]},
        {"generalists": {"3": 3}},
    ],
)
def test_malformed_json_is_refused(change: dict[str, object]) -> None:
    assert CombinationTable.from_json(VALID).masks == (3, 1, 2)
    with pytest.raises((TypeError, ValueError)):
        CombinationTable.from_json(VALID | change)


@pytest.mark.parametrize("key", list(VALID))
def test_json_without_a_key_is_refused(key: str) -> None:
    with pytest.raises(KeyError):
        CombinationTable.from_json({name: value for name, value in VALID.items() if name != key})


def test_thirty_modalities_with_two_thousand_combinations_stay_small() -> None:
    drawn = random.Random(0).sample(range(1, 1 << 30), 3000)
    table = table_of(drawn[:2000], 30, experts=16)
    placement = table.place(torch.tensor(drawn))  # a thousand of them unseen
    assert len(table.slots) == sum(30 - mask.bit_count() for mask in drawn[:2000])
    lacking = ~torch.tensor([[bool(mask >> m & 1) for m in range(30)] for mask in drawn])
    assert torch.equal(placement.slots_BM != NO_SLOT, lacking)
    for index in (0, 2000, 2999):
        for m in lacking[index].nonzero().flatten().tolist():
            source, modality = table.slots[int(placement.slots_BM[index, m])]
            assert (modality, source) == (m, nearest(drawn[index], [k for k in table.masks if not k >> m & 1]))
