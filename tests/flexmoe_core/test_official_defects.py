"""Defects of the official code of Flex-MoE (June 2025) that cannot occur here.

Here are those that only a model in use shows. The others are pinned where their part is tested:
- the residual is none: ``test_trunk``, with silent attention and feed-forward the input passes unchanged;
- nothing fixes an incomplete patient's top-1 expert: ``test_model``, specializing sends each patient to its expert;
- the cross-entropy is on noisy logits: ``test_losses``, specialization teaches the logits and not the noise;
- partial patients teach in the warm-up: ``test_model``, generalizing teaches by full patients alone;
- balance leaves out expert 0 instead of a patient's own: ``test_losses``, being many tokens' target costs nothing;
- indices of the batch before are used again: ``test_model``, nothing is carried from batch to batch;
- a number stands for "missing": ``test_model``, a missing value of an observed modality is zero and a flag;
- bank tokens look observed: ``test_model``, imputed tokens are marked as such;
- the head is as wide as there are modalities: ``test_pooling``, where pooling is by attention;
- checkpoints unpickle anything and hold no round or settings: ``test_checkpoint``.
"""

import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.evaluation import predict
from flexmoe_core.groups import shared_parameters, specs_of, support_of
from flexmoe_core.model import FlexMoe
from flexmoe_core.settings import LossSettings, MethodSettings, TrainingSettings
from flexmoe_core.training import TrainingResult, train_round
from tests.flexmoe_core.cohorts import generator, random_cohort, random_model, snapshot, table_of

MODALITIES = 3
MASKS = [0b111] * 9 + [0b011] * 4 + [0b101] * 3 + [0b110] * 3
TABLE = table_of([0b011, 0b101], MODALITIES)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"specialization": "learned", "layers": 3, "encoder_hidden": 4, "final_norm": True},
    {"router": "modality", "bank": "compositional", "pooling": "attention", "balancing": "bias"},
]
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS)


def train(model: FlexMoe, round_number: int = 1, masks: list[int] = MASKS, modalities: int = 3) -> TrainingResult:
    settings = MethodSettings(
        model=model.settings,
        losses=LossSettings(balance=0.1, specialization=0.1),
        training=TrainingSettings(batch_size=6, learning_rate=0.01, epochs=2, modality_dropout=0.0),
    )
    table = TABLE if modalities == MODALITIES else table_of(masks[:40], modalities, experts=model.settings.experts)
    plan = RoundPlan(Stage.SPECIALIZE, ordered=True)
    return train_round(model, random_cohort(masks, modalities), table, plan, settings, 1, "a", round_number)


def living_tensors() -> int:
    gc.collect()
    return sum(type(one) is Tensor for one in gc.get_objects())


@EVERY_OPTION
def test_no_tensor_outlives_its_batch(options: dict[str, Any]) -> None:
    """There, a list keeps four tensors of every batch for ever."""
    model, cohort = random_model(TABLE, **options), random_cohort(MASKS, MODALITIES)
    placement, counts = TABLE.place(cohort.masks_B), []
    for number in range(4):
        output = model(cohort, placement, specialize=True, generator=generator(number))
        (output.logits_BY.sum() + output.losses.balance + output.losses.specialization).backward()
        model.zero_grad()
        del output
        counts.append(living_tensors())
    assert len(set(counts)) == 1


@EVERY_OPTION
def test_evaluation_does_not_change_training(options: dict[str, Any]) -> None:
    """There, the routing loss of the last evaluated batch is added to the next trained one's."""
    ends, losses = [], []
    for evaluates in (False, True):
        model = random_model(TABLE, dropout=0.5, **options)
        train(model)
        if evaluates:
            for specialize in (False, True):
                predict(model, random_cohort(MASKS[::-1], MODALITIES, seed=5), TABLE, specialize=specialize)
        losses.append(train(model, round_number=2).loss)
        ends.append(snapshot(model))
    assert losses[0] == losses[1]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@EVERY_OPTION
def test_each_parameter_is_kept_once_and_none_is_dead(options: dict[str, Any]) -> None:
    """There, each gate is stored twice, and further routers are never trained."""
    model = random_model(TABLE, **options)
    places = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    assert len(set(places)) == len(places)
    before, support = snapshot(model), train(model).support
    for spec in specs_of(shared_parameters(model, ())):
        moved_R = (model.get_parameter(spec.name) != before[spec.name]).reshape(spec.row_shape).any(dim=1)
        supported_R = torch.from_numpy(support_of(spec.name, support, model)) > 0
        quiet = spec.name.endswith("router.gate") and options.get("specialization") == "learned"
        assert quiet or moved_R[supported_R].any(), spec.name
        assert moved_R[supported_R].all() or not spec.name.startswith(("bank", "encoders")), spec.name


@pytest.mark.parametrize("modalities", [1, 6, 12])
@EVERY_OPTION
def test_one_modality_six_and_twelve_are_trained_and_evaluated(modalities: int, options: dict[str, Any]) -> None:
    """There, one modality or more than four end in an error, and so does an unseen or an empty combination."""
    full = (1 << modalities) - 1
    masks = [full] * 3 + sorted({max(1, number * 37 % (full + 1)) for number in range(60)})
    table = table_of(masks[:40], modalities, experts=16)
    model = random_model(table, experts=16, active_experts=4, **{**options, "layers": 1})
    assert math.isfinite(train(model, masks=masks, modalities=modalities).loss)
    unseen = [mask for mask in range(full + 1) if mask not in table.masks][:50]
    assert 0 in unseen
    predictions = predict(model, random_cohort([full, *unseen], modalities), table, specialize=True)
    assert torch.from_numpy(predictions.probabilities_BY).isfinite().all()
    assert all(value.isfinite().all() for value in snapshot(model).values())
