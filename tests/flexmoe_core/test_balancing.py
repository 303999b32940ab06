"""Balance by bias: what it counts, where it moves, and that it alone moves.

Shapes: T tokens, D width, E experts, B patients.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from flexmoe_core.balancing import FreeChoices, adjust_bias, count_choices, free_choices
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.groups import support_of
from flexmoe_core.model import FlexMoe
from flexmoe_core.router import Router, Routing
from flexmoe_core.settings import CurriculumSettings, LossSettings, MethodSettings, TrainingSettings
from flexmoe_core.training import TrainingResult, train_round
from tests.flexmoe_core.cohorts import generator, random_cohort, random_model, randomize, snapshot, table_of, tiny

PATIENTS, TOKENS, WIDTH, EXPERTS = 6, 4, 5, 4
X_TD = torch.randn(PATIENTS * TOKENS, WIDTH, generator=generator(9), dtype=torch.float64)
EXPERT_T = (torch.arange(PATIENTS) % EXPERTS).repeat_interleave(TOKENS)
SPECIALIZED_T = (torch.arange(PATIENTS) % 2 == 0).repeat_interleave(TOKENS)
TABLE = table_of([0b111, 0b011, 0b101], 3)
MASKS = [0b111] * 9 + [0b011] * 4 + [0b101] * 3 + [0b100] * 2
BIAS = "layers.0.mixture.router.bias"
KINDS = pytest.mark.parametrize("pinned", [True, False])


def biased_router(pinned: bool, bias: Sequence[float] = (0.0,) * EXPERTS, active: int = 2) -> Router:
    router = Router(EXPERTS, active, WIDTH, pinned, generator(), biased=True).double()
    randomize(router, seed=3)
    assert router.bias is not None
    with torch.no_grad():
        router.bias.copy_(torch.tensor(bias))
    return router


def route(router: Router, seed: int | None = None, specialized_T: Tensor = SPECIALIZED_T) -> Routing:
    routing: Routing = router(X_TD, EXPERT_T, specialized_T, None, None if seed is None else generator(seed))
    return routing


@pytest.mark.parametrize("seed", [None, 2])
@KINDS
def test_a_bias_of_zero_changes_nothing(pinned: bool, seed: int | None) -> None:
    biased, plain = biased_router(pinned), Router(EXPERTS, 2, WIDTH, pinned, generator()).double()
    plain.load_state_dict({name: value for name, value in biased.state_dict().items() if name != "bias"})
    for name, value in vars(route(biased, seed)).items():
        assert torch.equal(value, getattr(route(plain, seed), name)), name


@KINDS
def test_a_bias_selects_and_has_no_part_in_the_gates(pinned: bool) -> None:
    bias = torch.tensor([0.9, -0.7, 0.3, 1.1], dtype=torch.float64)
    router = biased_router(pinned, bias.tolist())
    routing = route(router)
    for t, logits_E in enumerate(X_TD @ router.weight.T):
        target = int(EXPERT_T[t]) if SPECIALIZED_T[t] else None
        ranked_E = logits_E + torch.where(torch.arange(EXPERTS) == (-1 if target is None else target), 0.0, bias)
        order = ranked_E.argsort(descending=True).tolist()
        if pinned and target is not None:
            other = next(e for e in order if e != target)
            assert routing.chosen_TK[t].tolist() == [target, other]
            assert routing.gates_TK[t, 0] == 0.5 + 0.5 * router.gate.sigmoid()
        else:
            assert routing.chosen_TK[t].tolist() == order[:2]
            torch.testing.assert_close(routing.gates_TK[t], logits_E[order[:2]].softmax(dim=0))
    assert (routing.chosen_TK != route(biased_router(pinned)).chosen_TK).any()
    assert torch.equal(routing.clean_TE, X_TD @ router.weight.T)


@KINDS
def test_free_choices_are_counted_patient_by_patient(pinned: bool) -> None:
    routing = route(biased_router(pinned, (0.5, -0.5, 0.0, 0.2)), seed=1)
    choices = free_choices(routing, PATIENTS)
    for b in range(PATIENTS):
        for e in range(EXPERTS):
            tokens = range(b * TOKENS, (b + 1) * TOKENS)
            offered = [t for t in tokens if not (SPECIALIZED_T[t] and e == EXPERT_T[t])]
            taken = [t for t in offered if e in routing.chosen_TK[t].tolist()]
            assert choices.offered_BE[b, e] == len(offered) / TOKENS
            assert choices.taken_BE[b, e] == len(taken) / TOKENS


def test_only_teachers_count_and_the_parts_of_a_batch_add_up() -> None:
    draws = generator(4)
    choices = FreeChoices(*(torch.rand(PATIENTS, EXPERTS, generator=draws) for _ in range(2)))
    teaches_B = torch.arange(PATIENTS) % 3 != 0
    counts_2E = count_choices(choices, teaches_B)
    assert counts_2E.shape == (2, EXPERTS)
    torch.testing.assert_close(counts_2E[0], choices.offered_BE[teaches_B].sum(dim=0))
    torch.testing.assert_close(counts_2E[1], choices.taken_BE[teaches_B].sum(dim=0))
    parts = [
        count_choices(FreeChoices(choices.offered_BE[part], choices.taken_BE[part]), teaches_B[part])
        for part in (slice(0, 2), slice(2, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], counts_2E)


def test_a_bias_rises_below_the_mean_load_and_falls_above_it() -> None:
    router = biased_router(True, (1.0, 1.0, 1.0, 1.0))
    assert router.bias is not None
    # Loads of 0.75, 0.25 and 0.5 have the mean 0.5; nobody could choose the last expert.
    adjust_bias(router, torch.tensor([[8.0, 4.0, 2.0, 0.0], [6.0, 1.0, 1.0, 0.0]]), rate=0.1)
    torch.testing.assert_close(router.bias.detach(), torch.tensor([0.9, 1.1, 1.0, 1.0]).double())
    before = router.bias.detach().clone()
    adjust_bias(router, torch.zeros(2, EXPERTS), rate=0.1)
    assert torch.equal(router.bias, before)


def method(**options: object) -> MethodSettings:
    return MethodSettings(
        model=tiny(balancing="bias"),
        losses=LossSettings(balance=5.0),
        training=TrainingSettings.model_validate(
            {"batch_size": 6, "bias_rate": 0.125, "modality_dropout": 0.0, **options}
        ),
        curriculum=CurriculumSettings(min_full=8),
    )


def train(
    model: FlexMoe, masks: Sequence[int] = MASKS, stage: Stage = Stage.SPECIALIZE, **options: object
) -> TrainingResult:
    cohort, plan = random_cohort(masks, 3), RoundPlan(stage, ordered=False)
    return train_round(model, cohort, TABLE, plan, method(**options), 1, "a", 1)


def test_the_model_has_a_bias_only_where_it_balances() -> None:
    plain, biased = random_model(TABLE), random_model(TABLE, balancing="bias")
    assert set(snapshot(biased)) - set(snapshot(plain)) == {BIAS}
    assert not biased.get_parameter(BIAS).requires_grad


@pytest.mark.parametrize("seed", [None, 5])
def test_no_loss_balances_what_a_bias_balances(seed: int | None) -> None:
    model, cohort = random_model(TABLE, balancing="bias"), random_cohort(MASKS, 3)
    output = model(
        cohort, TABLE.place(cohort.masks_B), specialize=True, generator=None if seed is None else generator(seed)
    )
    assert output.losses.balance.item() == 0.0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_each_step_moves_a_bias_by_its_rate_and_nothing_else_does(optimizer: str) -> None:
    start = snapshot(random_model(TABLE, balancing="bias"))[BIAS]
    moved = {}
    for rate in (0.0, 0.125):
        model = random_model(TABLE, balancing="bias")
        train(model, optimizer=optimizer, bias_rate=rate, weight_decay=3.0, learning_rate=0.1)
        moved[rate] = snapshot(model)[BIAS] - start
    assert not moved[0.0].any()  # neither gradients nor decay reach it
    steps = moved[0.125] / 0.125
    torch.testing.assert_close(steps, steps.round())
    assert steps.any()
    assert steps.abs().max() <= 3


@pytest.mark.parametrize("accumulation", [2, 3])
def test_a_batch_in_parts_moves_a_bias_once(accumulation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr("flexmoe_core.steps.adjust_bias", lambda router, counts_2E, rate: seen.append(counts_2E))
    for parts in (1, accumulation):
        train(random_model(TABLE, balancing="bias"), accumulation=parts, batch_size=len(MASKS))
    assert len(seen) == 2
    torch.testing.assert_close(seen[0][0], seen[1][0])


def test_the_same_round_moves_a_bias_to_the_same_bits() -> None:
    ends = []
    for _ in range(2):
        model = random_model(TABLE, balancing="bias", dropout=0.5)
        train(model)
        ends.append(snapshot(model))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stage", Stage)
def test_the_support_of_a_bias_is_who_could_choose_its_expert(stage: Stage, optimizer: str) -> None:
    model = random_model(TABLE, balancing="bias")
    support_E = support_of(BIAS, train(model, stage=stage, optimizer=optimizer, epochs=2).support, model)
    targets = np.zeros(4)
    if stage is Stage.SPECIALIZE:
        cohort = random_cohort(MASKS, 3)
        placement = TABLE.place(cohort.masks_B)
        np.add.at(targets, placement.expert_B[~placement.full_B].numpy(), 1)
    teaching = len(MASKS) if stage is Stage.SPECIALIZE else MASKS.count(0b111)
    assert support_E.tolist() == pytest.approx((teaching - targets).tolist())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_where_nobody_teaches_biases_stay_and_have_no_support(optimizer: str) -> None:
    model = random_model(TABLE, balancing="bias")
    before = snapshot(model)[BIAS]
    result = train(model, [0b111] * 2 + [0b011] * 6, Stage.GENERALIZE, optimizer=optimizer)
    assert torch.equal(snapshot(model)[BIAS], before)
    assert not support_of(BIAS, result.support, model).any()


def spread(model: FlexMoe, masks: Sequence[int]) -> float:
    """How far the most and the least chosen expert are apart, of the free choices of patients."""
    cohort = random_cohort(masks, 3)
    use = model(cohort, TABLE.place(cohort.masks_B), specialize=True).use[0]
    counts_2E = count_choices(use.choices, None)
    load_E = counts_2E[1] / counts_2E[0]
    return float(load_E.max() - load_E.min())


def test_a_bias_evens_out_what_experts_are_chosen_for() -> None:
    masks, model = MASKS * 4, random_model(TABLE, balancing="bias")
    with torch.no_grad():
        model.get_parameter(BIAS).copy_(torch.tensor([3.0, 0.0, 0.0, -3.0]))
    before = spread(model, masks)
    train(model, masks, learning_rate=1e-9, batch_size=24, epochs=12)
    assert spread(model, masks) < 0.5 * before
