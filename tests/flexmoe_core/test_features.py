import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.features import encode, encode_categorical, encode_numeric, fit_numeric
from flexmoe_core.modalities.scale import scaled, squeezed
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn

AGE = NumericColumn(name="age", range=(20, 100))
SEX = CategoricalColumn(name="sex", categories=("female", "male"))


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_limits_become_two_and_missing_becomes_a_flag() -> None:
    features_BF = encode_numeric(AGE, doubles(20, 60, 100, math.nan))
    assert features_BF.dtype == torch.float32
    assert features_BF.tolist() == [[-2, 0], [0, 0], [2, 0], [0, 1]]
    assert features_BF.shape[1] == AGE.width


CREATININE = NumericColumn(name="creatinine", unit="mg/dl", range=(0, 40), typical=(0.5, 1.5))


def test_typical_limits_become_two_and_extremes_stay_near() -> None:
    features_BF = encode_numeric(CREATININE, doubles(0.5, 1.0, 1.5, 0.0, 40.0, math.nan))
    assert features_BF[:3].tolist() == [[-2, 0], [0, 0], [2, 0]]
    assert features_BF[3:, 0].tolist() == pytest.approx([-2 - math.log(3), 2 + math.log(155), 0])
    assert features_BF[:, 1].tolist() == [0, 0, 0, 0, 0, 1]


@given(st.lists(st.floats(0, 40), min_size=2, max_size=20))
@settings(max_examples=100, deadline=None)
def test_beyond_typical_limits_order_is_kept_and_distance_shrinks(values: list[float]) -> None:
    values_B = doubles(*sorted(values))
    squeezed_B = squeezed(scaled(values_B, (0.5, 1.5)))
    assert torch.equal(encode_numeric(CREATININE, values_B)[:, 0], squeezed_B.float())
    apart_B, linear_B = squeezed_B.diff(), scaled(values_B, (0.5, 1.5)).diff()
    assert ((apart_B >= 0) & (apart_B <= linear_B + 1e-12)).all()


def test_typical_limits_that_are_the_range_change_nothing() -> None:
    values_B = doubles(20, 33.3, 60, 71.7, 100, math.nan)
    assert torch.equal(
        encode_numeric(AGE, values_B),
        encode_numeric(NumericColumn(name="age", range=AGE.range, typical=AGE.range), values_B),
    )


def test_categories_are_one_hot_and_missing_is_a_flag() -> None:
    features_BF = encode_categorical(SEX, torch.tensor([1, -1, 0]))
    assert features_BF.dtype == torch.float32
    assert features_BF.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert features_BF.shape[1] == SEX.width


def test_no_patients_have_no_features() -> None:
    assert encode(AGE, doubles()).shape == (0, 2)
    assert encode(SEX, torch.empty(0, dtype=torch.int64)).shape == (0, 3)


@given(st.lists(st.floats(-1e12, 1e12) | st.just(math.nan), max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_fitted_column_encodes_any_values_finitely(values: list[float]) -> None:
    features_BF = encode(fit_numeric("x", doubles(*values)), doubles(*values))
    assert features_BF.isfinite().all()
    assert features_BF[:, 1].tolist() == [float(math.isnan(value)) for value in values]


def test_a_fitted_column_standardizes() -> None:
    column = fit_numeric("x", doubles(1, 2, 3, 6, math.nan), unit="g")
    scaled_B = encode_numeric(column, doubles(1, 2, 3, 6))[:, 0]
    assert scaled_B.mean().item() == pytest.approx(0, abs=1e-6)
    assert scaled_B.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert column.unit == "g"


@pytest.mark.parametrize("values", [(), (math.nan,), (5.0,), (5.0, 5.0)])
def test_a_constant_or_empty_column_keeps_its_unit_as_scale(values: tuple[float, ...]) -> None:
    low, high = fit_numeric("x", doubles(*values)).range
    assert high - low == 4
