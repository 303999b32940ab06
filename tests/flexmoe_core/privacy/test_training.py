"""What a private round does whatever the patients are, and what it must never do.

Shapes: B patients, V trainable values of a model.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.groups import Group, group_of
from flexmoe_core.model import FlexMoe
from flexmoe_core.privacy import training
from flexmoe_core.privacy.engine import Batch, ChanceOf, ClippedSum, PatientEngine
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.secret_source import OperatingSystemSource, SecretSource, choose_each
from flexmoe_core.privacy.training import PrivateResult, train_round_privately
from flexmoe_core.settings import CurriculumSettings, MethodSettings
from tests.flexmoe_core.cohorts import snapshot, table_of, tiny
from tests.flexmoe_core.privacy.patients import SeededSource, cohort_of, method_of, model_of

KINDS = ("tabular", "embedding", "sequence", "volume")
MASKS = [0b1111, 0b0001, 0b0110, 0b1111, 0b1000, 0b0101]
TABLE = table_of(MASKS, 4, 4)
MODEL = tiny(dropout=0.5, encoder_hidden=6, volume_channels=2, layers=2, pooling="attention")
MECHANISM = PatientMechanism(sampling_rate=0.5, steps=3, clip=0.5, noise_multiplier=2.0, expected_batch=8.0)
SPECIALIZE, GENERALIZE = RoundPlan(Stage.SPECIALIZE, ordered=False), RoundPlan(Stage.GENERALIZE, ordered=False)
PLAIN_SGD: dict[str, object] = {
    "optimizer": "sgd",
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "bank_decay": 0.0,
}


def sgd(**others: object) -> MethodSettings:
    """Parameters move by the negative gradient."""
    return method_of(MODEL, **{**PLAIN_SGD, **others})


def train(
    masks: Sequence[int] = MASKS,
    method: MethodSettings | None = None,
    source: SecretSource | None = None,
    plan: RoundPlan = SPECIALIZE,
    table: CombinationTable = TABLE,
    mechanism: PatientMechanism = MECHANISM,
    taught: bool = True,
    frozen: Collection[str] = (),
    quantile: float = 0.0,
) -> tuple[FlexMoe, dict[str, Tensor], PrivateResult]:
    """A model after a round on patients with those combinations, and what each parameter moved by."""
    method = sgd() if method is None else method
    model, cohort = model_of(table, KINDS, method.model), cohort_of(masks, KINDS)
    before, facts = snapshot(model), (plan, method, mechanism, source or SeededSource())
    result = train_round_privately(model, cohort, table, *facts, taught=taught, frozen=frozen, quantile=quantile)
    moved = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return model, moved, result


def silence(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take the noise away; the deviations that it would have had."""
    deviations: list[float] = []

    def noised(source: SecretSource, total: Tensor, deviation: float) -> Tensor:
        deviations.append(deviation)
        return total.detach().double()

    monkeypatch.setattr(training, "noised", noised)
    return deviations


def record_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    batches: list[Batch] = []
    original = PatientEngine.clipped_sum

    def clipped_sum(self: PatientEngine, batch: Batch, clip: float, chance_of: ChanceOf) -> ClippedSum:
        batches.append(batch)
        return original(self, batch, clip, chance_of)

    monkeypatch.setattr(PatientEngine, "clipped_sum", clipped_sum)
    return batches


@pytest.mark.parametrize(
    ("masks", "quantile", "taught"), [([], 0.0, True), ([], 0.5, False), (MASKS, 0.5, True), (MASKS, 0.0, False)]
)
def test_every_parameter_gets_noise_of_the_right_size(masks: list[int], quantile: float, taught: bool) -> None:
    """So much noise that patients do not count: the spread of each tensor's values, over many rounds."""
    mechanism = MECHANISM.model_copy(update={"noise_multiplier": 500.0, "steps": 1})
    rounds, source = 30, OperatingSystemSource()
    plan = SPECIALIZE if taught else GENERALIZE
    moved = [
        train(masks, plan=plan, source=source, mechanism=mechanism, quantile=quantile, taught=taught)[1]
        for _ in range(rounds)
    ]
    multiplier = 500.0
    if quantile > 0:
        multiplier = (500.0**-2 - (2 * 2.0 * 500.0) ** -2) ** -0.5
        assert multiplier > 500.0
    expected = multiplier * mechanism.clip / mechanism.expected_batch
    assert set(moved[0]) == {name for name, _ in model_of(TABLE, KINDS, MODEL).named_parameters()}
    for name in moved[0]:
        drawn = torch.stack([one[name] for one in moved]).flatten()
        # The mean square of n normal numbers spreads by sqrt(2 / n): six of these, and what patients add.
        allowed = 6 * (2 / drawn.numel()) ** 0.5 + 0.01
        assert abs(float(drawn.square().mean()) / expected**2 - 1) < allowed, name
        assert abs(float(drawn.mean())) < 6 * expected / drawn.numel() ** 0.5 + 0.01 * expected, name


def test_the_noise_of_parameters_is_independent() -> None:
    """The first values of all tensors, over many rounds."""
    source, mechanism = OperatingSystemSource(), MECHANISM.model_copy(update={"steps": 1})
    rows = [
        torch.stack([value.flatten()[0] for value in train([], source=source, mechanism=mechanism)[1].values()])
        for _ in range(100)
    ]
    correlation = torch.corrcoef(torch.stack(rows).T).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 6 / 100**0.5


@pytest.mark.parametrize("masks", [[], [0b1111], MASKS * 9])
def test_steps_and_noise_do_not_depend_on_the_patients(monkeypatch: pytest.MonkeyPatch, masks: list[int]) -> None:
    deviations, batches = silence(monkeypatch), record_batches(monkeypatch)
    train(masks)
    assert deviations == [MECHANISM.noise_multiplier * MECHANISM.clip] * MECHANISM.steps
    assert len(batches) == MECHANISM.steps


def test_the_sum_is_divided_by_the_public_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as long a step for twice the batch."""
    silence(monkeypatch)
    mechanism = MECHANISM.model_copy(update={"steps": 1})
    whole = train(mechanism=mechanism)[1]
    halved = train(mechanism=mechanism.model_copy(update={"expected_batch": 2 * mechanism.expected_batch}))[1]
    for name, moved in whole.items():
        assert torch.allclose(halved[name] * 2, moved), name
    assert whole["position"].any()


def test_a_small_and_a_large_site_move_alike_by_the_same_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    silence(monkeypatch)
    monkeypatch.setattr(training, "choose_each", lambda source, count, chance: torch.tensor([0]))
    mechanism = MECHANISM.model_copy(update={"steps": 1})
    model, cohort = model_of(TABLE, KINDS, MODEL), cohort_of(MASKS, KINDS)
    found = []
    for size in (1, 6):
        trained = model_of(TABLE, KINDS, MODEL)
        some = cohort.select(torch.arange(size))
        train_round_privately(trained, some, TABLE, SPECIALIZE, sgd(), mechanism, SeededSource(), taught=True)
        found.append(snapshot(trained))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
    assert not torch.equal(found[0]["position"], model.position)


def test_an_empty_sample_takes_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = record_batches(monkeypatch)
    _, moved, _ = train(mechanism=MECHANISM.model_copy(update={"sampling_rate": 1e-9}))
    assert [len(batch) for batch in batches] == [0] * MECHANISM.steps
    assert all(bool((value != 0).all()) for value in moved.values())


@pytest.mark.parametrize("plan", [SPECIALIZE, GENERALIZE])
def test_every_step_samples_all_patients_alike(monkeypatch: pytest.MonkeyPatch, plan: RoundPlan) -> None:
    asked: list[tuple[int, float]] = []
    chosen: list[Tensor] = []

    def choose(source: SecretSource, count: int, chance: float) -> Tensor:
        asked.append((count, chance))
        chosen.append(choose_each(source, count, chance))
        return chosen[-1]

    monkeypatch.setattr(training, "choose_each", choose)
    batches = record_batches(monkeypatch)
    train(plan=plan)
    assert asked == [(len(MASKS), MECHANISM.sampling_rate)] * MECHANISM.steps
    masks_B = torch.tensor(MASKS)
    assert [batch.cohort.masks_B.tolist() for batch in batches] == [masks_B[one].tolist() for one in chosen]


def test_samples_are_independent() -> None:
    """Over many steps each patient is in as many as the rate says, and so is each pair."""
    source, rate, steps = OperatingSystemSource(), 0.3, 4000
    seen = torch.zeros(steps, 5)
    for step in range(steps):
        seen[step, choose_each(source, 5, rate)] = 1.0
    both = seen.T @ seen / steps
    expected = torch.full((5, 5), rate**2).fill_diagonal_(rate)
    assert float((both - expected).abs().max()) < 6 * (0.25 / steps) ** 0.5


def test_no_first_epoch_in_order() -> None:
    ordered, plain = (train(plan=RoundPlan(Stage.SPECIALIZE, ordered=one))[1] for one in (True, False))
    for name, moved in ordered.items():
        assert torch.equal(moved, plain[name]), name


def test_chance_is_the_secret_sources_alone() -> None:
    """The same seeds of every public generator give other noise and samples; the same injected source, the same."""

    def seeded(source: SecretSource) -> dict[str, Tensor]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that must not matter
        torch.manual_seed(0)
        return train(source=source)[1]

    first, second = (seeded(OperatingSystemSource()) for _ in range(2))
    for name, moved in first.items():
        assert not torch.equal(moved, second[name]), name
    injected = seeded(SeededSource(3))
    torch.manual_seed(99)
    again = train(source=SeededSource(3))[1]
    for name, moved in injected.items():
        assert torch.equal(moved, again[name]), name


def test_public_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    train(source=OperatingSystemSource())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_is_frozen_does_not_move_and_the_rest_does(optimizer: str) -> None:
    method = method_of(MODEL, optimizer=optimizer)
    model = model_of(TABLE, KINDS, MODEL)
    frozen = {name for name, _ in model.named_parameters() if group_of(name) in (Group.EXPERTS, Group.ROUTER)}
    frozen |= {"encoders.m1-encoder.hidden.weight"}
    trained, moved, _ = train(method=method, frozen=frozen)
    assert {name for name, value in moved.items() if not value.any()} == frozen
    assert all(parameter.requires_grad and parameter.grad is None for parameter in trained.parameters())


def test_a_name_that_the_model_lacks_is_an_error() -> None:
    with pytest.raises(KeyError):
        train(frozen=["encoders.m9-encoder.hidden.weight"])


@pytest.mark.parametrize("plan", [SPECIALIZE, GENERALIZE])
@pytest.mark.parametrize("taught", [True, False])
def test_who_teaches_experts_is_a_public_fact(monkeypatch: pytest.MonkeyPatch, plan: RoundPlan, taught: bool) -> None:
    """Generalists teach where that was declared, however few they are; the others never do while generalizing."""
    silence(monkeypatch)
    experts, mechanism = {}, MECHANISM.model_copy(update={"steps": 1, "sampling_rate": 1.0})
    for mask in (0b1111, 0b0001):
        _, moved, _ = train([mask], plan=plan, taught=taught, mechanism=mechanism)
        assert moved["head.weight"].any()
        experts[mask] = any(moved[name].any() for name in moved if group_of(name) in (Group.EXPERTS, Group.ROUTER))
    everybody = plan.stage is Stage.SPECIALIZE
    assert experts == {0b1111: everybody or taught, 0b0001: everybody}


def test_the_number_of_full_patients_decides_nothing() -> None:
    few, many = (
        train(plan=GENERALIZE, method=sgd().model_copy(update={"curriculum": CurriculumSettings(min_full=full)}))[1]
        for full in (1, 100)
    )
    for name, moved in few.items():
        assert torch.equal(moved, many[name]), name


def test_the_loss_of_balance_has_no_weight() -> None:
    method = sgd()
    heavy = method.model_copy(update={"losses": method.losses.model_copy(update={"balance": 100.0})})
    (_, moved, _), (_, others, _) = train(method=method), train(method=heavy)
    for name, value in moved.items():
        assert torch.equal(value, others[name]), name


def test_a_table_that_lacks_a_combination_serves_as_well() -> None:
    train(table=table_of([0b0011], 4, 4))


def test_the_clip_stays_without_a_quantile() -> None:
    assert train()[2] == PrivateResult(MECHANISM.clip)


def test_an_adapted_clip_scales_the_noise_of_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    deviations = silence(monkeypatch)
    _, _, result = train(quantile=0.5)
    assert len(set(deviations)) == MECHANISM.steps
    assert result.clip != MECHANISM.clip
    assert deviations[1] / deviations[0] != 1.0


def test_the_model_learns() -> None:
    """With little noise the loss of the patients falls."""
    method = method_of(tiny(), learning_rate=0.01, weight_decay=0.0)
    table = table_of([0b1, 0b11], 2, 4)
    model, cohort = model_of(table, ["tabular", "embedding"], method.model), cohort_of([0b1, 0b11] * 20, KINDS[:2])
    cohort = replace(cohort, labels_B=(cohort.inputs["m0"][:, 0] > 0).long())
    mechanism = PatientMechanism(sampling_rate=0.5, steps=60, clip=1.0, noise_multiplier=0.1, expected_batch=20.0)

    def wrong() -> int:
        with torch.no_grad():
            output = model(cohort, table.place(cohort.masks_B), specialize=True)
        return int((output.logits_BY.argmax(dim=1) != cohort.labels_B).sum())

    before = wrong()
    train_round_privately(model, cohort, table, SPECIALIZE, method, mechanism, OperatingSystemSource(), taught=True)
    assert before >= 15
    assert wrong() <= 5
