import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import Stage, batches, is_specialized, plan_round, teachers
from flexmoe_core.settings import CurriculumSettings
from tests.flexmoe_core.cohorts import generator, observed

MODALITIES = 4
PATIENTS = st.lists(st.integers(1, 2**MODALITIES - 1), max_size=30)


def epoch(masks: list[int], batch_size: int, ordered: bool, seed: int = 0) -> list[int]:
    split = list(batches(observed(masks, MODALITIES), batch_size, ordered, generator(seed)))
    assert all(len(batch_B) == batch_size for batch_B in split[:-1])
    assert all(len(batch_B) <= batch_size for batch_B in split)
    return torch.cat(split).tolist()


@examples(max_examples=30, deadline=None)
@given(masks=PATIENTS, batch_size=st.integers(1, 9), ordered=st.booleans())
def test_every_patient_comes_once(masks: list[int], batch_size: int, ordered: bool) -> None:
    assert sorted(epoch(masks, batch_size, ordered)) == list(range(len(masks)))


@examples(max_examples=30, deadline=None)
@given(masks=PATIENTS, batch_size=st.integers(1, 9))
def test_an_ordered_epoch_descends_in_observed_modalities(masks: list[int], batch_size: int) -> None:
    counts = [masks[b].bit_count() for b in epoch(masks, batch_size, ordered=True)]
    assert counts == sorted(counts, reverse=True)


def test_order_is_random_otherwise_and_among_equals() -> None:
    masks = [0b1111] * 20 + [0b0001] * 20
    assert epoch(masks, 7, ordered=False, seed=1) == epoch(masks, 7, ordered=False, seed=1)
    assert epoch(masks, 7, ordered=False, seed=1) != epoch(masks, 7, ordered=False, seed=2)
    shuffled = [masks[b].bit_count() for b in epoch(masks, 7, ordered=False)]
    assert shuffled != sorted(shuffled, reverse=True)
    first, second = (epoch(masks, 7, ordered=True, seed=seed) for seed in (1, 2))
    assert first != second
    assert first[:20] != sorted(first[:20])


@pytest.mark.parametrize("generalize_rounds", [0, 1, 3])
def test_stages_in_turn_and_one_ordered_round(generalize_rounds: int) -> None:
    settings = CurriculumSettings(generalize_rounds=generalize_rounds)
    plans = [plan_round(number, settings) for number in range(1, 7)]
    assert [plan.stage for plan in plans] == [Stage.GENERALIZE] * generalize_rounds + [Stage.SPECIALIZE] * (
        6 - generalize_rounds
    )
    assert [plan.ordered for plan in plans].index(True) == generalize_rounds
    assert sum(plan.ordered for plan in plans) == 1


def test_a_model_is_scored_as_its_last_round_routed() -> None:
    settings = CurriculumSettings(generalize_rounds=2)
    assert [is_specialized(rounds, settings) for rounds in range(5)] == [False, False, False, True, True]
    assert is_specialized(0, CurriculumSettings(generalize_rounds=0))


@pytest.mark.parametrize(
    ("full", "taught"), [(0, []), (1, []), (7, []), (8, [0, 1, 2, 3, 4, 5, 6, 7]), (9, list(range(9)))]
)
def test_a_site_with_too_few_full_patients_teaches_nothing_at_first(full: int, taught: list[int]) -> None:
    table = CombinationTable.build(2, 4, {"a": {0b11: 50, 0b01: 50}}, min_full=8)
    placement = table.place(torch.tensor([0b11] * full + [0b01] * 20))
    settings = CurriculumSettings(min_full=8)
    teaches_B = teachers(placement, Stage.GENERALIZE, settings)
    assert teaches_B is not None
    assert teaches_B.nonzero().flatten().tolist() == taught
    assert teachers(placement, Stage.SPECIALIZE, settings) is None


def test_where_nobody_is_full_the_largest_combinations_teach() -> None:
    table = CombinationTable.build(3, 4, {"a": {0b011: 5, 0b001: 50}, "b": {0b110: 9, 0b011: 9}}, min_full=8)
    placement = table.place(torch.tensor([0b011] * 4 + [0b110] * 4 + [0b001] * 9))
    teaches_B = teachers(placement, Stage.GENERALIZE, CurriculumSettings(min_full=8))
    assert teaches_B is not None
    assert teaches_B.tolist() == [True] * 8 + [False] * 9
