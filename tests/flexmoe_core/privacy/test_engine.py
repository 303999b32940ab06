"""Gradients of single patients of the whole model, against one backward pass for each.

Shapes: B patients, V trainable values of a model.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexmoe_core.privacy.engine import PatientEngine
from flexmoe_core.settings import MethodSettings
from tests.flexmoe_core.cohorts import table_of, tiny
from tests.flexmoe_core.privacy.patients import (
    batch_of,
    by_brute_force,
    by_the_engine,
    cohort_of,
    method_of,
    model_of,
)

KINDS = ("tabular", "embedding", "sequence", "volume")
TOLERANCE = 1e-6

models = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 3),
        "width": st.sampled_from([8, 16]),
        "layers": st.integers(1, 2),
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
        "bank": st.sampled_from(["table", "compositional", "zero"]),
        "pooling": st.sampled_from(["concat", "attention"]),
    }
)


def check(
    masks: list[int], kinds: list[str], method: MethodSettings, specialize: bool, taught_B: Tensor | None
) -> None:
    """Every patient's gradient and its norm, relative to the gradient's norm."""
    table = table_of(masks[::2], len(kinds), method.model.experts)
    model, cohort = model_of(table, kinds, method.model), cohort_of(masks, kinds)
    engine, batch = PatientEngine(model, table, method, specialize), batch_of(cohort, table, taught_B)
    numbers = list(range(len(masks)))
    found_BV, squared_B = by_the_engine(engine, batch, numbers)
    for number, (found_V, squared) in enumerate(zip(found_BV, squared_B, strict=True)):
        expected_V = by_brute_force(model, batch.select(torch.tensor([number])), table, method, specialize, number)
        norm = float(expected_V.norm())
        assert float((found_V - expected_V).norm()) <= TOLERANCE * norm, worst(engine, found_V - expected_V)
        assert abs(float(squared.sqrt()) - norm) <= TOLERANCE * norm


def worst(engine: PatientEngine, error_V: Tensor) -> str:
    sizes = [value.numel() for value in engine.trained.values()]
    errors = {name: float(e.norm()) for name, e in zip(engine.trained, error_V.split(sizes), strict=True)}
    return str({name: error for name, error in errors.items() if error > 1e-9})


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
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
