"""Precision and accumulation: what they must not change."""

from typing import Any

import pytest
import torch

from flexmoe_core import experts
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.experts import ExpertWeights, mix
from flexmoe_core.settings import LossSettings, MethodSettings, TrainingSettings
from flexmoe_core.steps import Draws, Steps
from flexmoe_core.training import train_round
from tests.flexmoe_core.cohorts import generator, random_cohort, random_model, randomize, table_of, tiny

MODALITIES = 3
MASKS = [0b111, 0b011, 0b101, 0b001, 0b111, 0b110, 0b010, 0b011, 0b100, 0b111]
TABLE = table_of(MASKS, MODALITIES)


def method(model: dict[str, Any], losses: dict[str, Any], **training: object) -> MethodSettings:
    return MethodSettings(
        model=tiny(**model),
        losses=LossSettings(**losses),
        training=TrainingSettings.model_validate({"modality_dropout": 0.0, **training}),
    )


def gradients_of_a_step(settings: MethodSettings, model: dict[str, Any], taught: bool) -> dict[str, torch.Tensor]:
    """Of one batch of all patients, without noise; some teach the experts and some do not."""
    one, cohort = random_model(TABLE, **model), random_cohort(MASKS, MODALITIES)
    draws = Draws(generator(), generator(), noise=None)
    steps = Steps(one, TABLE, settings, draws, specialize=True)
    steps.take(cohort, TABLE.place(cohort.masks_B), torch.arange(len(MASKS)) % 3 > 0 if taught else None)
    return {name: parameter.grad for name, parameter in one.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("specialization", ["pinned", "learned"])
@pytest.mark.parametrize("parts", [2, 3, 100])
def test_a_gradient_in_parts_is_that_of_the_batch(parts: int, specialization: str, taught: bool) -> None:
    model, losses = {"specialization": specialization}, {"balance": 0.0, "specialization": 0.5, "rehearsal": 0.0}
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e-3}
    whole = gradients_of_a_step(method(model, losses, **options), model, taught)
    in_parts = gradients_of_a_step(method(model, losses, accumulation=parts, **options), model, taught)
    assert whole.keys() == in_parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(in_parts[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_balance_in_parts_is_the_mean_of_the_parts_balance() -> None:
    settings = method({}, {"balance": 1.0, "rehearsal": 0.0}, optimizer="sgd", learning_rate=1e-3, accumulation=2)
    cohort, found = random_cohort(MASKS, MODALITIES), gradients_of_a_step(settings, {}, taught=False)
    expected: dict[str, torch.Tensor] = {}
    for half in torch.arange(len(MASKS)).chunk(2):
        model = random_model(TABLE)
        steps = Steps(model, TABLE, method({}, {"balance": 1.0, "rehearsal": 0.0}), _quiet(), specialize=True)
        part = cohort.select(half)
        steps.take(part, TABLE.place(part.masks_B), None)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad / 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def _quiet() -> Draws:
    return Draws(generator(), generator(), noise=None)


def loss_after_training(precision: str) -> tuple[float, float]:
    """Training loss in the first and in the last round, on patients whose label their first value decides."""
    cohort = random_cohort(MASKS * 20, MODALITIES, dtype=torch.float32)
    cohort.labels_B.copy_((torch.stack(list(cohort.inputs.values())).sum(dim=0)[:, 0] > 0).long())
    model = random_model(TABLE, dtype=torch.float32)
    settings = method({}, {}, learning_rate=1e-2, batch_size=32, epochs=3, precision=precision)
    plan = RoundPlan(Stage.SPECIALIZE, ordered=False)
    losses = [train_round(model, cohort, TABLE, plan, settings, 1, "a", round_).loss for round_ in range(1, 9)]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return losses[0], losses[-1]


def test_bfloat16_learns_as_well_as_float32() -> None:
    (_, single), (first, half) = loss_after_training("float32"), loss_after_training("bfloat16")
    assert half < 0.5 * first
    assert half == pytest.approx(single, abs=0.05)


GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_grouped_products_and_one_wide_layer_agree(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str
) -> None:
    draws = generator(3)
    module = experts.Experts(4, 16, 24, draws)
    randomize(module)
    x_TD, gates_TK = torch.randn(900, 16, generator=draws), torch.rand(900, 2, generator=draws)
    chosen_TK = torch.rand(900, 4, generator=draws)[:, :3].topk(2, dim=1).indices  # nobody chooses the last expert
    found = []
    for wide, grouped in ((False, False), (False, True), (True, False)):
        monkeypatch.setattr(experts, "prefers_wide", lambda x_TD, weights, wide=wide: wide)
        monkeypatch.setattr(experts, "prefers_grouped", lambda x_RD, grouped=grouped: grouped)
        leaves = [t.detach().to(device).requires_grad_() for t in (x_TD, gates_TK, *module.parameters())]
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            y_TD = mix(leaves[0], chosen_TK.to(device), leaves[1], ExpertWeights(*leaves[2:]))
        found.append((y_TD, *torch.autograd.grad(y_TD.float().square().mean(), leaves)))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2  # of the largest value: sums are rounded in another order
    for blocks, *others in zip(*found, strict=True):
        for other in others:
            assert blocks.dtype == other.dtype
            scale = float(other.detach().float().abs().max())
            torch.testing.assert_close(blocks, other, rtol=0.0, atol=tolerance * scale)


def test_grouped_products_and_blocks_drop_the_same_units(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = generator(3)
    weights = ExpertWeights(*experts.Experts(4, 16, 24, draws).parameters())
    x_TD, gates_TK = torch.randn(900, 16, generator=draws), torch.rand(900, 2, generator=draws)
    chosen_TK, found = torch.rand(900, 4, generator=draws).topk(2, dim=1).indices, []
    for grouped in (False, True):
        monkeypatch.setattr(experts, "prefers_grouped", lambda x_RD, grouped=grouped: grouped)
        found.append(mix(x_TD, chosen_TK, gates_TK, weights, 0.3, generator(9)))
    torch.testing.assert_close(*found)


def test_one_wide_layer_drops_at_its_rate_and_keeps_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "prefers_wide", lambda x_TD, weights: True)
    # Hidden units of one and outputs that add them up: the mean of what is kept, scaled, is all of them.
    weights = ExpertWeights(torch.zeros(2, 8, 16), torch.full((2, 16), 9.0), torch.ones(2, 16, 8), torch.zeros(2, 8))
    x_TD, chosen_TK, gates_TK = torch.zeros(4000, 8), torch.tensor([[0, 1]] * 4000), torch.full((4000, 2), 0.5)
    y_TD = mix(x_TD, chosen_TK, gates_TK, weights, 0.25, generator(1))
    kept_TD = y_TD * 0.75 / (9 * 0.5)
    torch.testing.assert_close(kept_TD, kept_TD.round(), rtol=0, atol=1e-4)
    assert y_TD.mean() == pytest.approx(9 * 16, rel=0.01)
    assert torch.equal(mix(x_TD, chosen_TK, gates_TK, weights, 0.25, generator(1)), y_TD)
    assert mix(x_TD, chosen_TK, gates_TK, weights).eq(9 * 16).all()


def test_a_gradient_is_no_longer_than_its_norm_may_be_and_keeps_its_direction() -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e-3}
    losses = {"balance": 0.0, "rehearsal": 0.0}
    free = gradients_of_a_step(method({}, losses, **options), {}, taught=False)
    norm = torch.cat([one.flatten() for one in free.values()]).norm()
    for limit, expected in ((float(norm) / 3, 1 / 3), (float(norm) * 2, 1.0)):
        bound = gradients_of_a_step(method({}, losses, gradient_norm=limit, **options), {}, taught=False)
        for name, gradient in free.items():
            torch.testing.assert_close(bound[name], expected * gradient, rtol=1e-4, atol=1e-8, msg=name)
