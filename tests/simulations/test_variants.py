from __future__ import annotations

import pytest

from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import FlexMoe
from flexmoe_core.settings import PRESETS, MethodSettings
from simulations.variants import FLEX_MOE, VARIANTS
from tests.flexmoe_core.cohorts import modality_names, random_model

TABLE = CombinationTable.build(3, 16, {"a": {0b111: 20, 0b011: 10}}, min_full=8)


def model_of(method: MethodSettings) -> FlexMoe:
    return random_model(TABLE, **method.model.model_dump())


def feed_forward_parameters(model: FlexMoe) -> int:
    parts = (".mixture.experts.", ".dense.")
    return sum(value.numel() for name, value in model.named_parameters() if any(part in name for part in parts))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_changes_valid_settings_into_others_that_build(name: str, preset: str) -> None:
    method = PRESETS[preset]()
    changed = VARIANTS[name].change(method)
    assert MethodSettings.model_validate(changed.model_dump()) == changed
    assert (changed == method) == (name == FLEX_MOE or VARIANTS[name].fills_means)
    assert model_of(changed).modalities == modality_names(3)


def test_the_dense_variants_have_the_multiply_adds_or_the_parameters_of_the_experts() -> None:
    method = PRESETS["small"]()
    experts, active = method.model.experts, method.model.active_experts
    mixture, dense, wide = (
        feed_forward_parameters(model_of(VARIANTS[name].change(method))) for name in (FLEX_MOE, "dense", "dense-wide")
    )
    width = method.model.width  # only the biases of the output layers are fewer
    assert dense == mixture * active // experts - (active - 1) * width
    assert wide == mixture - (experts - 1) * width
