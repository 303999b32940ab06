"""Rehearsal: what patients hide, and that the bank alone learns from it.

Shapes: B patients, M modalities, S bank rows.
"""

import pytest
import torch
from torch import Tensor

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.groups import Group, group_of, support_of
from flexmoe_core.model import FlexMoe
from flexmoe_core.rehearsal import CHANCE, hide_modalities, rehearse
from flexmoe_core.settings import LossSettings, MethodSettings, TrainingSettings
from flexmoe_core.training import TrainingResult, train_round
from tests.flexmoe_core.cohorts import generator, gradients, random_cohort, random_model, snapshot, table_of, tiny

MODALITIES = 3
MASKS = [0b111] * 9 + [0b011] * 4 + [0b101] * 3 + [0b100] * 2
TABLE = table_of([0b111, 0b011, 0b101], MODALITIES)
COMPLETE = [0b111] * 40
"""Nobody lacks anything: the bank would learn nothing without rehearsal."""


def rehearsed(model: FlexMoe, cohort: Cohort, table: CombinationTable = TABLE) -> Tensor:
    hidden = hide_modalities(cohort, CHANCE, generator(3))
    return rehearse(model, hidden, table.place(hidden.masks_B), specialize=True, noise=generator(4))


def train(
    model: FlexMoe, cohort: Cohort, rehearsal: float, optimizer: str = "sgd", batch_size: int = 100, epochs: int = 1
) -> TrainingResult:
    training = {"optimizer": optimizer, "learning_rate": 0.1, "batch_size": batch_size, "epochs": epochs}
    training["modality_dropout"] = 0.0
    settings = MethodSettings(
        model=model.settings,
        losses=LossSettings(rehearsal=rehearsal),
        training=TrainingSettings.model_validate(training),
    )
    return train_round(model, cohort, TABLE, RoundPlan(Stage.SPECIALIZE, ordered=False), settings, 1, "a", 1)


def test_only_the_bank_has_gradient_from_hidden_modalities() -> None:
    model, cohort = random_model(TABLE, layers=3, dropout=0.5), random_cohort(MASKS, MODALITIES)
    for name, gradient in gradients(model, rehearsed(model, cohort)).items():
        assert bool(gradient.any()) == (group_of(name) is Group.BANK), name


def test_a_step_with_rehearsal_moves_the_rest_of_the_model_to_the_same_bits() -> None:
    ends = []
    for rehearsal in (0.0, 1.0):
        model = random_model(TABLE, layers=3, dropout=0.5)
        train(model, random_cohort(MASKS, MODALITIES), rehearsal)
        ends.append(snapshot(model))
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]) == (group_of(name) is not Group.BANK), name


def test_the_loss_is_the_task_loss_of_the_patients_who_hide() -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    hidden = hide_modalities(cohort, 0.5, generator(3))
    output = model(hidden, TABLE.place(hidden.masks_B), specialize=True, generator=generator(4))
    chosen_B = output.logits_BY.softmax(dim=1)[torch.arange(len(cohort)), cohort.labels_B]
    torch.testing.assert_close(rehearsed(model, cohort), -chosen_B.log().mean())


def test_the_weight_of_rehearsal_scales_what_the_bank_learns() -> None:
    before, moved = snapshot(random_model(TABLE))["bank.default"], []
    for rehearsal in (0.5, 1.0):
        model = random_model(TABLE)
        train(model, random_cohort(COMPLETE, MODALITIES), rehearsal)
        moved.append(snapshot(model)["bank.default"] - before)
    torch.testing.assert_close(2 * moved[0], moved[1])


def test_what_nobody_lacks_is_learned_from_who_hides_it() -> None:
    cohort = random_cohort(COMPLETE, MODALITIES)
    for rehearsal in (0.0, 1.0):
        model = random_model(TABLE)
        before = snapshot(model)["bank.default"]
        result = train(model, cohort, rehearsal, "adamw", batch_size=7, epochs=3)
        moved_M = (snapshot(model)["bank.default"] != before).flatten(1).any(dim=1)
        support_M = support_of("bank.default", result.support, model)
        assert moved_M.tolist() == (support_M > 0).tolist() == [rehearsal > 0] * MODALITIES


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_support_of_a_token_is_who_lacked_and_who_hid(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    kept: list[Cohort] = []

    def record(cohort: Cohort, chance: float, draws: torch.Generator) -> Cohort:
        kept.append(hide_modalities(cohort, chance, draws))
        return kept[-1]

    monkeypatch.setattr("flexmoe_core.steps.hide_modalities", record)
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    alone = train(model, cohort, 0.0, "adamw", batch_size=5, epochs=epochs).support
    assert not kept
    both = train(model, cohort, 1.0, "adamw", batch_size=5, epochs=epochs).support
    observed_BM, masks_B = (torch.cat([getattr(one, name) for one in kept]) for name in ("observed_BM", "masks_B"))
    assert len(observed_BM) == epochs * len(cohort)
    slots_BM = TABLE.place(masks_B).slots_BM
    for m in range(MODALITIES):
        assert both.lacking_M[m] - alone.lacking_M[m] == pytest.approx(int((~observed_BM[:, m]).sum()) / epochs)
    for slot in range(len(TABLE.slots)):
        assert both.slots_S[slot] - alone.slots_S[slot] == pytest.approx(int((slots_BM == slot).sum()) / epochs)
    assert (both.patients, both.incomplete, both.specialized) == (alone.patients, alone.incomplete, alone.specialized)
    assert both.modality_M.tolist() == alone.modality_M.tolist()
    assert both.experts_LE.sum() == pytest.approx(alone.experts_LE.sum())


def test_zero_fill_does_not_rehearse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexmoe_core.steps.rehearse", None)  # rehearsing would be an error
    ends = []
    for rehearsal in (0.0, 1.0):
        model = random_model(TABLE, bank="zero", dropout=0.5)
        support = train(model, random_cohort(MASKS, MODALITIES), rehearsal, "adamw", batch_size=5, epochs=2).support
        assert (support.lacking_M.tolist(), support.slots_S.tolist()) == ([2, 5, 4], [])
        ends.append(snapshot(model))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("chance", [0.2, 0.5])
@pytest.mark.parametrize("mask", range(1, 8))
def test_each_modality_is_hidden_with_the_given_chance_but_one_is_kept(mask: int, chance: float) -> None:
    count, has = 20000, mask.bit_count()
    cohort = random_cohort([mask] * count, MODALITIES)
    shown_BM = hide_modalities(cohort, chance, generator(5)).observed_BM
    assert shown_BM.any(dim=1).all()
    assert not (shown_BM & ~cohort.observed_BM).any()
    # Whoever would hide everything shows one of the k after all.
    expected = (1 - chance + chance**has / has) * cohort.observed_BM[0].double()
    torch.testing.assert_close(shown_BM.double().mean(dim=0), expected, rtol=0, atol=0.015)
    combinations = set(Cohort({}, shown_BM, cohort.labels_B).masks_B.tolist())
    assert combinations == {part for part in range(1, 8) if part & ~mask == 0}


def test_modalities_are_hidden_independently() -> None:
    shown_BM = hide_modalities(random_cohort([0b11111111] * 20000, 8), 0.5, generator(6)).observed_BM.double()
    correlation_MM = torch.corrcoef(shown_BM.T) - torch.eye(8)
    assert correlation_MM.abs().max() < 0.04


def test_the_generator_alone_decides_what_is_hidden() -> None:
    cohort, state = random_cohort(MASKS, MODALITIES), torch.random.get_rng_state()
    first, again, other = (hide_modalities(cohort, 0.5, generator(seed)).observed_BM for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_hiding_neither_copies_nor_alters_anything() -> None:
    cohort = random_cohort(MASKS, MODALITIES)
    before = {name: x_BF.clone() for name, x_BF in cohort.inputs.items()}, cohort.observed_BM.clone()
    hidden = hide_modalities(cohort, 0.5, generator())
    assert hidden.labels_B is cohort.labels_B
    for name, x_BF in cohort.inputs.items():
        assert hidden.inputs[name] is x_BF
        assert torch.equal(x_BF, before[0][name])
    assert torch.equal(cohort.observed_BM, before[1])
    assert not torch.equal(hidden.observed_BM, before[1])


def test_hidden_values_do_not_reach_the_loss() -> None:
    model, cohort = random_model(TABLE), random_cohort(COMPLETE, MODALITIES)
    shown_BM = hide_modalities(cohort, 0.5, generator(3)).observed_BM
    unread = {
        name: torch.where(shown_BM[:, m, None], x_BF, torch.nan)
        for m, (name, x_BF) in enumerate(cohort.inputs.items())
    }
    found = rehearsed(model, Cohort(unread, cohort.observed_BM, cohort.labels_B))
    assert torch.equal(found, rehearsed(model, cohort))


def test_nobody_and_patients_without_any_modality_hide_nothing() -> None:
    nobody = random_cohort([], MODALITIES)
    assert hide_modalities(nobody, 0.5, generator()).observed_BM.shape == (0, MODALITIES)
    empty = random_cohort([0, 0], MODALITIES)
    assert not hide_modalities(empty, 0.5, generator()).observed_BM.any()


def test_a_table_without_rows_is_rehearsed_by_defaults_alone() -> None:
    table = table_of([], MODALITIES)
    model = random_model(table, **tiny().model_dump())
    found = rehearsed(model, random_cohort(COMPLETE, MODALITIES), table)
    assert gradients(model, found)["bank.default"].flatten(1).any(dim=1).all()
