"""Fixed shapes, everywhere; recorded steps and their chance, where there is a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flexmoe_core.cohort import Cohort
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.experts import MOST_WIDE
from flexmoe_core.groups import Support
from flexmoe_core.model import FlexMoe, ModalityInput, build_model
from flexmoe_core.replay import WARM_UP, WORTHWHILE, tensors_of
from flexmoe_core.settings import LossSettings, MethodSettings, TrainingSettings
from flexmoe_core.steps import Draws, Lesson, Steps
from flexmoe_core.training import replayed_batch, train_round
from tests.flexmoe_core.cohorts import generator, random_cohort, random_model, randomize, snapshot, table_of, tiny

MODALITIES = 3
MASKS = [0b111, 0b011, 0b101, 0b001, 0b111, 0b110, 0b010, 0b011, 0b100, 0b111, 0b110, 0b111]
TABLE = table_of(MASKS, MODALITIES)
KINDS = {"tabular": (3,), "embedding": (5,), "sequence": (6, 4), "volume": (8, 8, 8)}
GPU = torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def gradients_of(model: FlexMoe, cohort: Cohort, taught: bool, fixed_shapes: bool) -> dict[str, Tensor]:
    taught_B = torch.arange(len(cohort)) % 3 > 0 if taught else None
    output = model(
        cohort, TABLE.place(cohort.masks_B), specialize=True, teaches_experts_B=taught_B, fixed_shapes=fixed_shapes
    )
    (output.logits_BY.square().mean() + output.losses.balance).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("masks", [MASKS, [0b111] * 4, [0b011] * 3])
def test_fixed_shapes_change_nothing(masks: list[int], taught: bool) -> None:
    """Nobody's encoder learns from a modality that is not there, whatever stands in its place."""
    cohort = random_cohort(masks, MODALITIES)
    noisy = {
        name: torch.where(cohort.observed_BM[:, m, None], x_BF, 1e3)
        for m, (name, x_BF) in enumerate(cohort.inputs.items())
    }
    found = gradients_of(random_model(TABLE), cohort, taught, fixed_shapes=False)
    fixed = gradients_of(
        random_model(TABLE), Cohort(noisy, cohort.observed_BM, cohort.labels_B), taught, fixed_shapes=True
    )
    assert found.keys() == fixed.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(fixed[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_lesson_lists_its_tensors_in_order() -> None:
    cohort = random_cohort(MASKS, MODALITIES)
    places = TABLE.place(cohort.masks_B)
    listed = list(tensors_of(Lesson(cohort, places, None, cohort, places)))
    assert len(listed) == 2 * (MODALITIES + 2 + 4)
    assert listed[0] is cohort.inputs["m0"]
    assert listed[-1] is places.slots_BM


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(
    ("patients", "changes", "expected"),
    [
        (WORTHWHILE * 8, {}, 8),
        (WORTHWHILE * 8 - 1, {}, None),
        (WORTHWHILE * 4, {"epochs": 2}, 8),
        (WORTHWHILE * 8, {"replay": False}, None),
        (MOST_WIDE, {"batch_size": MOST_WIDE // 100}, None),
    ],
)
def test_only_many_batches_are_recorded(patients: int, changes: dict[str, Any], expected: int | None) -> None:
    settings = TrainingSettings.model_validate({"batch_size": 8, **changes})
    assert replayed_batch(patients, random_model(TABLE).to(GPU), settings) == expected


def test_a_cpu_records_nothing() -> None:
    assert replayed_batch(1000, random_model(TABLE), TrainingSettings(batch_size=8)) is None


def of_every_kind(patients: int) -> tuple[Cohort, list[ModalityInput]]:
    draws, masks = generator(1), torch.randint(1, 16, (patients,), generator=generator(2))
    observed_BM = (masks[:, None] >> torch.arange(4) & 1).bool()
    inputs = {}
    for m, (kind, shape) in enumerate(KINDS.items()):
        x = torch.randn(patients, *shape, generator=draws)
        if kind == "sequence":
            x[..., 1] = 1.0
        inputs[kind] = x * observed_BM[:, m].reshape(-1, *[1] * len(shape))
    cohort = Cohort(inputs, observed_BM, torch.randint(2, (patients,), generator=draws))
    return cohort, [ModalityInput(kind, kind, shape) for kind, shape in KINDS.items()]


HIDE_NOTHING: dict[str, Any] = {"modality_dropout": 0.0}


def train_every_kind(
    device: torch.device, stage: Stage, training: dict[str, Any], tokens: int
) -> tuple[dict[str, Tensor], Support, float]:
    """Weights, support and loss after a round on patients of every kind of modality."""
    cohort, inputs = of_every_kind(200)
    table = table_of(sorted(set(cohort.masks_B.tolist())), 4)
    settings = MethodSettings(
        model=tiny(width=16, dropout=0.25, layers=2, tokens=tokens),
        training=TrainingSettings(
            **{"batch_size": 8, "learning_rate": 1e-3, "epochs": 2, **HIDE_NOTHING, **training}
        ),
    )
    one = build_model([i.name for i in inputs], inputs, 2, table, settings.model, seed=0)
    randomize(one)
    one.to(device)
    result = train_round(one, cohort.to(device), table, RoundPlan(stage, ordered=False), settings, 1, "a", 1)
    return {name: value.cpu() for name, value in snapshot(one).items()}, result.support, result.loss


OPTIONS: list[dict[str, Any]] = [
    {},
    {"precision": "bfloat16"},
    {"accumulation": 2},
    {"modality_dropout": 0.3},
    {"optimizer": "sgd"},
]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tokens", [2, 100])  # of each modality
def test_a_round_on_a_gpu_has_the_same_bits_again(tokens: int, options: dict[str, Any], stage: Stage) -> None:
    (first, support, loss), (again, _, loss_again) = (train_every_kind(GPU, stage, options, tokens) for _ in range(2))
    assert loss == loss_again
    assert support.patients == 200
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert all(bool(value.isfinite().all()) for value in first.values())


def steps_without_chance(
    device: torch.device,
    replayed: int | None,
    model: dict[str, Any],
    losses: dict[str, Any],
    taught: bool,
    **training: object,
) -> tuple[dict[str, Tensor], Steps]:
    """Batches of seven and in the end of five, without noise, in float64 where sums are all but exact."""
    settings = MethodSettings(
        model=tiny(**model),
        losses=LossSettings(**losses),
        training=TrainingSettings.model_validate({**HIDE_NOTHING, **training}),
    )
    one, cohort = random_model(TABLE, **model).to(device), random_cohort(MASKS * 7, MODALITIES).to(device)
    draws = Draws(generator(), generator(1), noise=None)
    steps = Steps(one, TABLE, settings, draws, specialize=True, replayed=replayed)
    places = TABLE.place(cohort.masks_B)
    taught_B = torch.arange(len(cohort), device=device) % 3 > 0 if taught else None
    for index_B in torch.arange(len(cohort) - 2, device=device).split(7):
        steps.take(cohort.select(index_B), places.select(index_B), None if taught_B is None else taught_B[index_B])
    return {name: value.cpu() for name, value in snapshot(one).items()}, steps


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("model", [{}, {"balancing": "bias"}, {"specialization": "learned", "router": "modality"}])
@pytest.mark.parametrize(
    "options", [{"optimizer": "sgd", "learning_rate": 0.01}, {"accumulation": 2}, {"modality_dropout": 0.3}], ids=str
)
@pytest.mark.parametrize("replayed", [None, 7])
def test_steps_on_a_gpu_recorded_or_not_lead_where_those_on_a_cpu_lead(
    replayed: int | None, options: dict[str, Any], model: dict[str, Any], taught: bool
) -> None:
    assert len(MASKS) > WARM_UP
    losses = {"specialization": 0.5}
    expected, steps = steps_without_chance(torch.device("cpu"), None, model, losses, taught, **options)
    found, on_gpu = steps_without_chance(GPU, replayed, model, losses, taught, **options)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)
    for name in ("loss", "incomplete", "observed_M", "lacking_M", "slots_S", "routed_LRE", "offered_LE"):
        value = getattr(on_gpu.tally, name).cpu()
        torch.testing.assert_close(value, getattr(steps.tally, name), rtol=1e-6, atol=1e-9, msg=name)
