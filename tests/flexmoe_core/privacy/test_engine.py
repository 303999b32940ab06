"""Gradients of single patients of the whole model, against one backward pass for each; and their clipped sum.

Shapes: B patients, V trainable values of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flexmoe_core.privacy import engine as engine_module
from flexmoe_core.privacy.engine import Batch, PatientEngine, clip_factors
from flexmoe_core.settings import MethodSettings
from tests.flexmoe_core.cohorts import table_of, tiny
from tests.flexmoe_core.privacy.patients import (
    FixedChance,
    batch_of,
    by_brute_force,
    by_the_engine,
    cohort_of,
    method_of,
    model_of,
)

KINDS = ("tabular", "embedding", "sequence", "volume")
TOLERANCE = 1e-6
MASKS = [0b1111, 0b0001, 0b0110, 0b1111, 0b1000, 0b0101, 0b1011]
FULL = {"dropout": 0.5, "encoder_hidden": 6, "encoder_dropout": 0.25, "volume_channels": 2, "layers": 3}

models = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 3),
        "width": st.sampled_from([8, 16]),
        "layers": st.integers(1, 3),
        "experts": st.integers(2, 5),
        "active_experts": st.integers(1, 2),
        "dropout": st.sampled_from([0.0, 0.3, 0.5]),
        "encoder_hidden": st.sampled_from([0, 6]),
        "encoder_dropout": st.sampled_from([0.0, 0.25]),
        "volume_channels": st.just(2),
        "final_norm": st.booleans(),
        "feed_forward": st.sampled_from(["mixture", "mixture", "dense"]),
        "specialization": st.sampled_from(["pinned", "learned"]),
        "router": st.sampled_from(["shared", "modality"]),
        "balancing": st.sampled_from(["loss", "bias"]),
        "bank": st.sampled_from(["table", "compositional", "zero"]),
        "pooling": st.sampled_from(["concat", "attention"]),
    }
)


def check(
    masks: Sequence[int],
    kinds: Sequence[str],
    method: MethodSettings,
    specialize: bool,
    taught_B: Tensor | None,
    frozen: Callable[[str], bool] = lambda name: False,
) -> Tensor:
    """Every patient's gradient and its norm, relative to the gradient's norm; the gradients (B, V)."""
    table = table_of(masks[::2], len(kinds), method.model.experts)
    model, cohort = model_of(table, kinds, method.model), cohort_of(masks, kinds)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen(name))
    engine, batch = PatientEngine(model, table, method, specialize), batch_of(cohort, table, taught_B)
    found_BV, norms_B = by_the_engine(engine, batch, range(len(masks)))
    for number, (found_V, norm) in enumerate(zip(found_BV, norms_B, strict=True)):
        single = batch.select(torch.tensor([number]))
        expected_V = by_brute_force(model, single, table, method, specialize, number)
        expected = float(expected_V.norm())
        assert float((found_V - expected_V).norm()) <= TOLERANCE * expected, worst(engine, found_V - expected_V)
        assert abs(float(norm) - expected) <= TOLERANCE * expected
    return found_BV


def worst(engine: PatientEngine, error_V: Tensor) -> str:
    sizes = [value.numel() for value in engine.trained.values()]
    errors = {name: float(e.norm()) for name, e in zip(engine.trained, error_V.split(sizes), strict=True)}
    return str({name: error for name, error in errors.items() if error > 1e-9})


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), model=models)
def test_gradients_of_patients_equal_brute_force(data: st.DataObject, model: dict[str, object]) -> None:
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    masks = data.draw(st.lists(st.integers(1, 2 ** len(kinds) - 1), min_size=1, max_size=5))
    rehearsal = data.draw(st.sampled_from([0.0, 0.8]))
    modality_dropout = data.draw(st.sampled_from([0.0, 0.4]))
    method = method_of(tiny(**model), rehearsal, modality_dropout=modality_dropout)
    specialize = data.draw(st.booleans())
    taught_B = None
    if not specialize:
        taught_B = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(masks), max_size=len(masks))))
    check(masks, kinds, method, specialize, taught_B)


@pytest.mark.parametrize("specialize", [False, True])
@pytest.mark.parametrize(
    "choices",
    [
        {"bank": "table", "pooling": "concat", "router": "shared", "specialization": "pinned"},
        {"bank": "compositional", "pooling": "attention", "router": "modality", "specialization": "learned"},
        {"bank": "zero", "feed_forward": "dense", "final_norm": True},
    ],
)
def test_the_gradient_of_every_parameter_is_there(specialize: bool, choices: dict[str, object]) -> None:
    """All kinds of encoders, three layers, more patients than a volume encoder reads at once."""
    method = method_of(tiny(**{**FULL, **choices}), modality_dropout=0.2)
    masks = MASKS * 3
    taught_B = None if specialize else torch.tensor([mask == 0b1111 for mask in masks])
    found_BV = check(masks, KINDS, method, specialize, taught_B)
    model = model_of(table_of(masks[::2], 4, 4), KINDS, method.model)
    names = [name for name, _ in model.named_parameters()]
    sizes = [parameter.numel() for parameter in model.parameters()]
    silent = {name for name, part in zip(names, found_BV.abs().sum(0).split(sizes), strict=True) if not part.any()}
    pins = specialize and method.model.specialization == "pinned"
    assert silent == {name for name in names if name.endswith("router.gate") and not pins}


def test_an_expert_without_tokens_has_zeros() -> None:
    """One patient of one token, two experts of five."""
    method = method_of(tiny(tokens=1, experts=5), 0.0)
    (found_V,) = check([1], ["tabular"], method, True, None)
    model = model_of(table_of([1], 1, 5), ["tabular"], method.model)
    sizes = [parameter.numel() for parameter in model.parameters()]
    by_name = dict(zip(dict(model.named_parameters()), found_V.split(sizes), strict=True))
    for key in ("w1", "b1", "w2", "b2"):
        used_E = by_name[f"layers.0.mixture.experts.{key}"].reshape(5, -1).abs().sum(dim=1) > 0
        assert used_E.sum() == 2


@pytest.mark.parametrize(
    "part", ["experts", "router", "encoders", "bias", "bank", "experts.b1", "weight", "position"]
)
def test_what_is_frozen_is_neither_in_the_sum_nor_in_the_norm(part: str) -> None:
    method = method_of(tiny(**FULL))
    table = table_of(MASKS[::2], 4, 4)
    names = [name for name, _ in model_of(table, KINDS, method.model).named_parameters()]
    assert any(part in name for name in names)
    check(MASKS, KINDS, method, True, None, frozen=lambda name: part in name)


def engine_of(method: MethodSettings, dtype: torch.dtype = torch.float64) -> tuple[PatientEngine, Batch]:
    table = table_of(MASKS[::2], 4, 4)
    model, cohort = model_of(table, KINDS, method.model, dtype), cohort_of(MASKS, KINDS, dtype=dtype)
    return PatientEngine(model, table, method, specialize=True), batch_of(cohort, table, None)


def clipped(engine: PatientEngine, batch: Batch, who: Sequence[int], clip: float) -> tuple[Tensor, float]:
    """The clipped sum of some patients, each with his own chance."""
    chosen_B = torch.tensor(who, dtype=torch.int64)
    with engine.tape.attached():
        found = engine.clipped_sum(
            batch.select(chosen_B), clip, lambda index_S: FixedChance(chosen_B[index_S].tolist())
        )
    return found.total_V, found.below


@settings(max_examples=20, deadline=None)
@given(
    others=st.lists(st.integers(0, len(MASKS) - 1), max_size=len(MASKS), unique=True),
    patient=st.integers(0, len(MASKS) - 1),
    clip=st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_patient_changes_the_sum_by_the_clip_at_most(
    others: list[int], patient: int, clip: float, dtype: torch.dtype
) -> None:
    others = [other for other in others if other != patient]
    engine, batch = engine_of(method_of(tiny(**FULL), modality_dropout=0.2), dtype)
    without_V, below = clipped(engine, batch, others, clip)
    with_V, below_with = clipped(engine, batch, sorted([*others, patient]), clip)
    change = float((with_V.double() - without_V.double()).norm())
    assert change <= clip
    (alone_V, _) = clipped(engine, batch, [patient], clip)
    assert torch.allclose(with_V, without_V + alone_V, rtol=1e-3, atol=1e-5 * clip)
    assert abs(below_with - below) == 0.5


def test_a_gradient_above_the_clip_is_brought_to_it_as_a_whole() -> None:
    engine, batch = engine_of(method_of(tiny(**FULL)))
    whole_V, below = clipped(engine, batch, [0], 1e9)
    assert below == 0.5
    clip = float(whole_V.norm()) / 3
    clipped_V, above = clipped(engine, batch, [0], clip)
    assert above == -0.5
    assert torch.allclose(clipped_V, whole_V / 3)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 50])
@pytest.mark.parametrize("most", [1, 3, 128])
def test_parts_do_not_change_the_sum(monkeypatch: pytest.MonkeyPatch, accumulation: int, most: int) -> None:
    everyone = list(range(len(MASKS)))
    expected_V, below = clipped(*engine_of(method_of(tiny(**FULL))), everyone, 5.0)
    monkeypatch.setattr(engine_module, "MOST_AT_ONCE", most)
    found_V, found = clipped(*engine_of(method_of(tiny(**FULL), accumulation=accumulation)), everyone, 5.0)
    assert torch.allclose(found_V, expected_V, rtol=1e-10, atol=1e-12)
    assert found == below


def test_an_empty_batch_sums_to_zero() -> None:
    engine, batch = engine_of(method_of(tiny(**FULL)))
    total_V, below = clipped(engine, batch, [], 1.0)
    assert total_V.shape == (sum(value.numel() for value in engine.model.parameters()),)
    assert not total_V.any()
    assert below == 0.0


@pytest.mark.parametrize("specialization", ["pinned", "learned"])
def test_a_patient_whose_gradient_overflows_counts_as_zero_and_changes_nobody(specialization: str) -> None:
    engine, batch = engine_of(method_of(tiny(**FULL, specialization=specialization)), torch.float32)
    expected_V, _ = clipped(engine, batch, [0, 2, 4], 1.0)
    for value in (1e30, torch.inf, torch.nan):
        for x in batch.cohort.inputs.values():
            x[3] = value
        found_V, _ = clipped(engine, batch, [0, 2, 3, 4], 1.0)
        assert found_V.isfinite().all()
        if value != 1e30:  # norms within an encoder bring that back to size
            assert torch.allclose(found_V, expected_V, rtol=1e-4, atol=1e-6)


def test_a_layer_of_an_unknown_kind_is_refused() -> None:
    method = method_of(tiny())
    table = table_of([1], 1, 4)
    model = model_of(table, ["tabular"], method.model)
    model.norm = nn.BatchNorm1d(8)
    with pytest.raises(TypeError, match="no gradients of single patients are known for norm"):
        PatientEngine(model, table, method, specialize=True)


def test_nothing_stays_behind_on_the_model() -> None:
    engine, batch = engine_of(method_of(tiny(**FULL)))
    clipped(engine, batch, [0, 1], 1.0)
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    assert not any(module._forward_hooks for module in engine.model.modules())
    assert not engine.tape.calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_factors(dtype: torch.dtype) -> None:
    norms_B = torch.tensor([0.0, 1.0, 2.0, 4.0, torch.inf, torch.nan], dtype=dtype)
    factors_B = clip_factors(norms_B, 2.0)
    assert torch.allclose(factors_B, torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 0.0], dtype=dtype), rtol=1e-3)
    assert (factors_B[2:4] * norms_B[2:4] < 2.0).all()
