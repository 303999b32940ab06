"""One site's round: what it learns from, what it repeats, and whose patients it names as support.

Shapes: B patients, L sparse layers, E experts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flexmoe_core import steps, training
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.groups import Group, group_of, shared_parameters, specs_of, support_of
from flexmoe_core.model import FlexMoe
from flexmoe_core.randomness import torch_generator
from flexmoe_core.rehearsal import hide_modalities
from flexmoe_core.settings import CurriculumSettings, LossSettings, MethodSettings, TrainingSettings
from flexmoe_core.steps import build_optimizer, total
from flexmoe_core.training import TrainingResult, train_round
from flexmoe_core.update import Update, build_update
from tests.flexmoe_core.cohorts import TINY, random_cohort, random_model, snapshot, table_of, tiny

MODALITIES = 3
MASKS = [0b111] * 9 + [0b011] * 4 + [0b101] * 3 + [0b100] * 2
TABLE = table_of([0b111, 0b011, 0b101], MODALITIES)
GENERALIZE = RoundPlan(Stage.GENERALIZE, ordered=False)
SPECIALIZE = RoundPlan(Stage.SPECIALIZE, ordered=False)
TEACHING = (Group.EXPERTS, Group.ROUTER)


def method(
    model: dict[str, Any] | None = None, balance: float = 0.01, rehearsal: float = 1.0, **options: object
) -> MethodSettings:
    return MethodSettings(
        model=tiny(**(model or {})),
        losses=LossSettings(balance=balance, rehearsal=rehearsal),
        training=TrainingSettings.model_validate({"batch_size": 5, "modality_dropout": 0.0, **options}),
        curriculum=CurriculumSettings(min_full=8),
    )


def train(
    model: FlexMoe,
    cohort: Cohort,
    plan: RoundPlan = SPECIALIZE,
    settings: MethodSettings | None = None,
    table: CombinationTable = TABLE,
    seed: int = 1,
    site: str = "a",
    round_number: int = 1,
) -> TrainingResult:
    return train_round(model, cohort, table, plan, settings or method(), seed, site, round_number)


def trained(changes: dict[str, Any] | None = None) -> tuple[dict[str, torch.Tensor], TrainingResult]:
    options: dict[str, Any] = {"dropout": 0.5, "encoder_hidden": 4, "encoder_dropout": 0.3}
    model = random_model(TABLE, dtype=torch.float32, **options)
    cohort = random_cohort(MASKS, MODALITIES, dtype=torch.float32)
    result = train(model, cohort, settings=method(options, epochs=2), **(changes or {}))
    return snapshot(model), result


def test_the_same_seed_site_and_round_train_to_the_same_bits() -> None:
    state = torch.random.get_rng_state()
    first, first_result = trained()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(12345)
    second, second_result = trained()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first_result.loss == second_result.loss
    assert np.array_equal(first_result.support.experts_LE, second_result.support.experts_LE)


@pytest.mark.parametrize("change", [{"round_number": 2}, {"site": "b"}, {"seed": 2}])
def test_another_seed_site_or_round_trains_to_others(change: dict[str, Any]) -> None:
    first, second = trained()[0], trained(change)[0]
    assert not any(torch.equal(first[name], second[name]) for name in ("head.weight", "bank.default"))


def test_the_loss_is_the_mean_over_patients() -> None:
    alone: dict[str, Any] = {"experts": 1, "active_experts": 1}  # router noise then changes nothing
    table = table_of([], MODALITIES, experts=1)
    settings = method(alone, balance=0.0, learning_rate=1e-12, batch_size=4)
    model, cohort = random_model(table, **alone), random_cohort(MASKS, MODALITIES)
    expected = []
    for b in range(len(cohort)):
        one = cohort.select(torch.tensor([b]))
        output = model(one, table.place(one.masks_B), specialize=True)
        expected.append(float(total(output, one.labels_B, settings.losses).detach()))
    result = train(model, cohort, settings=settings, table=table)
    assert result.loss == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_the_objective_weighs_task_balance_and_specialization() -> None:
    model, cohort = random_model(TABLE, specialization="learned"), random_cohort(MASKS, MODALITIES)
    output = model(cohort, TABLE.place(cohort.masks_B), specialize=True)
    chosen_B = output.logits_BY.softmax(dim=1)[torch.arange(len(cohort)), cohort.labels_B]
    expected = -chosen_B.log().mean() + 0.3 * output.losses.balance + 0.7 * output.losses.specialization
    assert output.losses.specialization > 0
    torch.testing.assert_close(
        total(output, cohort.labels_B, LossSettings(balance=0.3, specialization=0.7)), expected
    )


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("plan", [GENERALIZE, SPECIALIZE])
def test_support_counts_the_patients_behind_each_part(plan: RoundPlan, epochs: int) -> None:
    model, cohort = random_model(TABLE, layers=3, dropout=0.5), random_cohort(MASKS, MODALITIES)
    support = train(model, cohort, plan, method({"layers": 3, "dropout": 0.5}, rehearsal=0.0, epochs=epochs)).support
    count = len(MASKS)
    teaching = MASKS.count(0b111) if plan is GENERALIZE else count
    assert support.experts_LE.shape == (2, TINY["experts"])
    assert support.experts_LE.sum(axis=1) == pytest.approx([teaching, teaching])
    incomplete = count - MASKS.count(0b111)
    assert (support.patients, support.incomplete) == (count, incomplete)
    assert support.specialized == (incomplete if plan is SPECIALIZE else 0)
    assert support.modality_M.tolist() == [16, 13, 14]
    assert support.lacking_M.tolist() == [2, 5, 4]
    # 100 is not in the table: it borrows from 101, and nobody there lacks modality 0.
    assert dict(zip(TABLE.slots, support.slots_S.tolist(), strict=True)) == {(0b011, 2): 4, (0b101, 1): 5}


def test_routed_tokens_are_counted_by_expert() -> None:
    table = table_of(MASKS, MODALITIES, experts=4)
    options: dict[str, Any] = {"active_experts": 1}
    model, cohort = random_model(table, **options), random_cohort([0b011] * 4 + [0b101] * 3, MODALITIES)
    support = train(model, cohort, settings=method(options), table=table).support
    expected = [0.0] * 4
    expected[table.experts[table.masks.index(0b011)]] = 4.0
    expected[table.experts[table.masks.index(0b101)]] = 3.0
    assert support.experts_LE.tolist() == [expected]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("full", [0, 1, 7])
def test_with_too_few_full_patients_experts_and_router_stay_as_they_came(full: int, optimizer: str) -> None:
    model = random_model(TABLE)
    cohort, before = random_cohort([0b111] * full + [0b011] * 5 + [0b101] * 4, MODALITIES), snapshot(model)
    support = train(model, cohort, GENERALIZE, method(optimizer=optimizer, epochs=2)).support
    for name, value in snapshot(model).items():
        frozen = group_of(name) in TEACHING
        assert torch.equal(value, before[name]) == frozen, name
        if frozen:
            assert not support_of(name, support, model).any(), name
    assert support_of("head.weight", support, model).tolist() == [full + 9]


def test_with_enough_full_patients_they_alone_move_experts_and_router() -> None:
    cohort = random_cohort(MASKS, MODALITIES)
    full_B = cohort.observed_BM.all(dim=1)[:, None]
    moved = replace(cohort, inputs={name: torch.where(full_B, x, x + 1.0) for name, x in cohort.inputs.items()})
    results = []
    for one in (cohort, moved):
        model = random_model(TABLE)
        train(model, one, GENERALIZE, method(optimizer="sgd", learning_rate=0.5, batch_size=len(cohort)))
        results.append(snapshot(model))
    before = snapshot(random_model(TABLE))
    for name, value in results[0].items():
        alike = group_of(name) in TEACHING
        assert torch.allclose(value, results[1][name], rtol=1e-9, atol=1e-12) == alike, name
    assert not torch.allclose(results[0]["layers.0.mixture.experts.w1"], before["layers.0.mixture.experts.w1"])


def seen(plan: RoundPlan, change: dict[str, Any] | None = None) -> list[int]:
    """The patients of two epochs in the order in which the model meets them."""
    model, cohort, met = random_model(TABLE), random_cohort(MASKS, MODALITIES), list[int]()
    known_BF = torch.cat(list(cohort.inputs.values()), dim=1)

    def record(_: torch.nn.Module, positional: Sequence[Any], named: dict[str, Any]) -> None:
        batch_BF = torch.cat(list(positional[0].inputs.values()), dim=1)
        met.extend(int((known_BF == one_F).all(dim=1).nonzero()) for one_F in batch_BF)
        assert named["specialize"] == (plan.stage is Stage.SPECIALIZE)

    model.register_forward_pre_hook(record, with_kwargs=True)
    train(model, cohort, plan, method(epochs=2, rehearsal=0.0), **(change or {}))
    return met


def test_the_first_epoch_of_specializing_descends_in_observed_modalities() -> None:
    def descends(patients: list[int]) -> bool:
        counts = [MASKS[b].bit_count() for b in patients]
        return counts == sorted(counts, reverse=True)

    met = seen(RoundPlan(Stage.SPECIALIZE, ordered=True))
    first, second = met[: len(MASKS)], met[len(MASKS) :]
    assert sorted(first) == sorted(second) == list(range(len(MASKS)))
    assert (descends(first), descends(second)) == (True, False)
    for plan in (GENERALIZE, SPECIALIZE):
        assert not descends(seen(plan)[: len(MASKS)])


@pytest.mark.parametrize("change", [{"round_number": 2}, {"site": "b"}, {"seed": 2}])
def test_every_seed_site_and_round_has_its_own_order(change: dict[str, Any]) -> None:
    assert seen(SPECIALIZE) == seen(SPECIALIZE)
    assert seen(SPECIALIZE) != seen(SPECIALIZE, change)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_every_round_draws_its_own_noise(dropout: float) -> None:
    settings = method({"dropout": dropout}, optimizer="sgd", learning_rate=0.1, batch_size=len(MASKS))
    moved = []
    for number in (1, 1, 2):
        model = random_model(TABLE, dropout=dropout)
        train(model, random_cohort(MASKS, MODALITIES), settings=settings, round_number=number)
        moved.append(model.head.weight)
    assert torch.equal(moved[0], moved[1])
    assert not torch.allclose(moved[0], moved[2], rtol=1e-4, atol=1e-4)  # the order of one batch cannot explain it


def step(model: FlexMoe, cohort: Cohort, settings: MethodSettings) -> tuple[Update, dict[str, np.ndarray]]:
    """The update of one site, as it would be sent, and the site's own final parameters."""
    shared = shared_parameters(model, ())
    before = {name: value.detach().numpy().copy() for name, value in shared.items()}
    result = train(model, cohort, SPECIALIZE, settings)
    after = {name: value.detach().numpy() for name, value in shared.items()}
    support = {name: support_of(name, result.support, model) for name in shared}
    return build_update(specs_of(shared), before, after, support), after


@pytest.mark.parametrize("active", [1, 2, 4])
def test_one_full_batch_step_of_sgd_over_sites_equals_one_pooled_step(
    monkeypatch: pytest.MonkeyPatch, active: int
) -> None:
    # Routing noise is drawn by batch; without it, sites and pool compute the same patients.
    def quiet(seed: int, *names: str | int, device: torch.device | None = None) -> torch.Generator | None:
        return None if "noise" in names else torch_generator(seed, *names, device=device)

    monkeypatch.setattr(training, "torch_generator", quiet)
    options: dict[str, Any] = {"active_experts": active, "layers": 2}
    # Each site draws for itself what its patients hide in rehearsal.
    settings = method(options, 0.0, 0.0, optimizer="sgd", learning_rate=0.2, batch_size=100, weight_decay=0.05)
    # One site has no full patients, one has no others, and one has a modality that nobody else has.
    pooled = random_cohort([0b011] * 5 + [0b111] * 2 + [0b101, 0b100, 0b110], MODALITIES)
    sites = [pooled.select(index) for index in torch.arange(10).split([5, 2, 3])]
    start = snapshot(random_model(TABLE, **options))
    _, expected = step(random_model(TABLE, **options), pooled, settings)

    updates = [step(random_model(TABLE, **options), site, settings)[0] for site in sites]
    assert len(expected) == len(start)
    for spec in specs_of(shared_parameters(random_model(TABLE, **options), ())):
        weighted = np.sum([update.weighted[spec.name].reshape(spec.row_shape) for update in updates], axis=0)
        support_R = np.sum([update.support[spec.name] for update in updates], axis=0)
        mean = (weighted / support_R[:, None]).reshape(spec.shape)
        moved = start[spec.name].numpy() + mean
        idle = spec.name.endswith("router.gate") and active == 1
        assert np.array_equal(moved, start[spec.name].numpy()) == idle, spec.name
        np.testing.assert_allclose(moved, expected[spec.name], rtol=1e-6, atol=1e-6, err_msg=spec.name)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_decay_and_rows_of_the_bank_decay_by_their_own_rate(optimizer: str) -> None:
    model = random_model(TABLE, layers=2)
    before = snapshot(model)
    options = {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.2, "bank_decay": 0.5}
    updater = build_optimizer(model, TrainingSettings(**options))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    updater.step()
    shrunk = {name: (value / before[name]).mean().item() for name, value in snapshot(model).items()}
    assert shrunk["bank.residual"] == pytest.approx(0.95)
    for name in ("head.weight", "layers.0.mixture.experts.w1", "layers.0.mixture.router.weight"):
        assert shrunk[name] == pytest.approx(0.98)
    for name in (
        "head.bias",
        "layers.0.attention_norm.weight",
        "bank.default",
        "position",
        "imputed",
        "layers.0.mixture.experts.b1",
    ):
        assert shrunk[name] == 1.0


def test_training_lowers_the_loss() -> None:
    model = random_model(TABLE, dtype=torch.float32)
    cohort = random_cohort(MASKS, MODALITIES, dtype=torch.float32)
    settings = method(learning_rate=1e-2, epochs=5)
    losses = [train(model, cohort, settings=settings, round_number=number).loss for number in range(1, 6)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_unseen_combination_can_be_trained_on() -> None:
    table = CombinationTable.build(MODALITIES, 4, {}, min_full=8)
    model, cohort = random_model(table), random_cohort([0b001, 0b010], MODALITIES)
    support = train(model, cohort, table=table).support
    assert support.slots_S.shape == (0,)
    assert support.experts_LE.sum() == pytest.approx(2.0)


@pytest.mark.parametrize("plan", [GENERALIZE, SPECIALIZE])
def test_with_modality_dropout_who_hides_is_placed_and_counted_as_who_lacks(
    monkeypatch: pytest.MonkeyPatch, plan: RoundPlan
) -> None:
    shown: list[Cohort] = []

    def record(cohort: Cohort, chance: float, draws: torch.Generator) -> Cohort:
        assert chance == 0.4
        shown.append(hide_modalities(cohort, chance, draws))
        return shown[-1]

    monkeypatch.setattr(steps, "hide_modalities", record)
    settings = method(rehearsal=0.0, epochs=2, modality_dropout=0.4)
    support = train(random_model(TABLE), random_cohort(MASKS, MODALITIES), plan, settings).support
    observed_BM, masks_B = (torch.cat([getattr(one, name) for one in shown]) for name in ("observed_BM", "masks_B"))
    slots_BM = TABLE.place(masks_B).slots_BM
    incomplete = float((masks_B != 0b111).sum()) / 2
    assert incomplete > MASKS.count(0b011) + MASKS.count(0b101) + MASKS.count(0b100)
    assert (support.patients, support.incomplete) == (len(MASKS), incomplete)
    assert support.specialized == (incomplete if plan is SPECIALIZE else 0)
    assert support.modality_M.tolist() == (observed_BM.sum(dim=0) / 2).tolist()
    assert support.lacking_M.tolist() == ((~observed_BM).sum(dim=0) / 2).tolist()
    assert support.slots_S.tolist() == [float((slots_BM == slot).sum()) / 2 for slot in range(len(TABLE.slots))]
    teaching = MASKS.count(0b111) if plan is GENERALIZE else len(MASKS)
    assert support.experts_LE.sum() == pytest.approx(teaching)


def test_modality_dropout_leaves_order_and_rehearsal_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed: list[list[Cohort]] = []

    def record(model: FlexMoe, hidden: Cohort, *rest: object) -> torch.Tensor:
        rehearsed[-1].append(hidden)
        return hidden.inputs["m0"].new_zeros(())

    monkeypatch.setattr(steps, "rehearse", record)
    for chance in (0.0, 0.5):
        rehearsed.append([])
        train(random_model(TABLE), random_cohort(MASKS, MODALITIES), settings=method(modality_dropout=chance))
    for plain, dropped in zip(*rehearsed, strict=True):
        assert torch.equal(plain.labels_B, dropped.labels_B)
        assert torch.equal(plain.observed_BM, dropped.observed_BM)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_model_without_experts_trains_as_a_whole_in_both_stages(optimizer: str) -> None:
    changes: dict[str, Any] = {"feed_forward": "dense", "layers": 2}
    for plan in (GENERALIZE, SPECIALIZE):
        model = random_model(TABLE, **changes)
        before = snapshot(model)
        cohort = random_cohort([0b011] * 5 + [0b101] * 4, MODALITIES)
        support = train(model, cohort, plan, method(changes, optimizer=optimizer)).support
        assert not {group_of(name) for name in before} & set(TEACHING)
        for name in shared_parameters(model, ()):
            if name.startswith("layers."):
                assert support_of(name, support, model).tolist() == [len(cohort)], name
                assert not torch.equal(before[name], snapshot(model)[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_embedding_of_the_imputed_learns_from_who_lacks_something_alone(optimizer: str) -> None:
    for masks in ([0b111] * 9, MASKS):
        model = random_model(TABLE)
        before = snapshot(model)["imputed"]
        support = train(model, random_cohort(masks, MODALITIES), settings=method(optimizer=optimizer)).support
        incomplete = sum(mask != 0b111 for mask in masks)
        assert torch.equal(snapshot(model)["imputed"], before) == (incomplete == 0)
        if optimizer == "adamw":
            assert support_of("imputed", support, model).tolist() == [incomplete]


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("plan", [GENERALIZE, SPECIALIZE])
def test_each_modalitys_router_counts_every_teacher_once(plan: RoundPlan, epochs: int) -> None:
    model, cohort = random_model(TABLE, router="modality", layers=3), random_cohort(MASKS, MODALITIES)
    settings = method({"router": "modality", "layers": 3}, epochs=epochs)
    support = train(model, cohort, plan, settings).support
    teaching = MASKS.count(0b111) if plan is GENERALIZE else len(MASKS)
    assert support.routed_LRE.shape == (2, MODALITIES, TINY["experts"])
    np.testing.assert_allclose(support.routed_LRE.sum(axis=2), teaching)
    np.testing.assert_allclose(support.experts_LE, support.routed_LRE.mean(axis=1))


def test_pairs_of_a_composed_bank_count_who_lacked_and_who_hid() -> None:
    cohort = random_cohort(MASKS, MODALITIES)
    expected = np.array([[sum(mask >> j & ~(mask >> m) & 1 for mask in MASKS) for m in range(3)] for j in range(3)])
    for rehearsal in (0.0, 1.0):
        model = random_model(TABLE, bank="compositional")
        settings = method({"bank": "compositional"}, rehearsal=rehearsal)
        pairs = train(model, cohort, settings=settings).support.slots_S.reshape(3, 3)
        assert not pairs.diagonal().any()
        off = ~np.eye(3, dtype=bool)
        assert (pairs == expected).all() if rehearsal == 0 else (pairs > expected)[off].all()
