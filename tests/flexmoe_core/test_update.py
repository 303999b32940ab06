from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.update import (
    MAGNITUDE_BITS,
    MAX_SITES,
    SCALE_BITS,
    TensorSpec,
    build_update,
    fits_fixed_point,
    from_fixed_point,
    joint_norm,
    to_fixed_point,
)

EDGE = 2.0**MAGNITUDE_BITS
IN_RANGE = st.floats(-EDGE, EDGE, width=32, exclude_min=True, exclude_max=True)


@settings(max_examples=50, deadline=None)
@given(st.lists(IN_RANGE, max_size=30))
def test_codes_are_the_nearest_multiples_of_the_resolution(numbers: list[float]) -> None:
    codes = to_fixed_point(np.array(numbers, dtype=np.float32))
    for number, code in zip(numbers, codes.tolist(), strict=True):
        assert abs(Fraction(number) - Fraction(code, 2**SCALE_BITS)) <= Fraction(1, 2 ** (SCALE_BITS + 1))
    np.testing.assert_allclose(from_fixed_point(codes), numbers, rtol=0, atol=2.0**-33)


def test_codes_round_to_nearest_and_half_to_even() -> None:
    units = np.array([0.75, -0.75, 0.25, 0.5, 1.5], np.float32)
    assert to_fixed_point(units * np.float32(2.0**-SCALE_BITS)).tolist() == [1, -1, 0, 0, 2]


def test_the_largest_codes_of_the_most_sites_fit_int64() -> None:
    largest = np.nextafter(np.array([EDGE]), 0.0)
    assert MAX_SITES * int(to_fixed_point(largest)[0]) < 2**63
    assert MAX_SITES >= 1000


@pytest.mark.parametrize(
    "values",
    [
        np.array([np.nan]),
        np.array([1.0, -np.inf], np.float32),
        np.array([EDGE], np.float32),
        np.array([-EDGE], np.float32),
        np.array([1, 2]),
        np.array([True]),
    ],
)
def test_what_has_no_code_is_refused(values: np.ndarray) -> None:
    assert not fits_fixed_point(values)
    with pytest.raises(ValueError, match="floating-point"):
        to_fixed_point(values)


def test_rows_must_be_one_or_those_of_the_first_axis() -> None:
    assert TensorSpec("scalar", (), 1).row_shape == (1, 1)
    assert TensorSpec("whole", (3, 4), 1).row_shape == (1, 12)
    assert TensorSpec("experts", (3, 4, 2), 3).row_shape == (3, 8)
    assert TensorSpec("no_slots", (0, 4), 0).row_shape == (0, 0)
    with pytest.raises(ValueError, match="bank"):
        TensorSpec("bank", (3, 4), 4)
    with pytest.raises(ValueError, match="scalar"):
        TensorSpec("scalar", (), 2)


def test_update_weighs_each_row_and_leaves_out_what_was_not_trained() -> None:
    specs = (TensorSpec("experts", (2, 3), 2), TensorSpec("head", (2,), 1), TensorSpec("bank", (2, 2), 2))
    before: dict[str, np.ndarray] = {
        "experts": np.ones((2, 3), np.float32),
        "head": np.zeros(2),
        "bank": np.zeros((2, 2)),
    }
    after = {"experts": np.full((2, 3), 1.5, np.float32), "head": np.array([1.0, -1.0]), "bank": np.ones((2, 2))}
    after["experts"][1] = np.nan  # a row without support never leaves, whatever became of it
    update = build_update(
        specs, before, after, {"experts": np.array([4.0, 0.0]), "head": np.array([10.0]), "bank": np.zeros(2)}
    )
    np.testing.assert_array_equal(update.weighted["experts"], [[2.0] * 3, [0.0] * 3])
    np.testing.assert_array_equal(update.weighted["head"], [10.0, -10.0])
    assert update.weighted.keys() == update.support.keys() == {"experts", "head"}
    assert {array.dtype for array in update.weighted.values()} == {np.dtype(np.float32)}
    assert joint_norm(update, specs) == pytest.approx(np.sqrt(3 * 0.25 + 2))


def test_differences_are_taken_before_rounding_to_float32() -> None:
    spec = TensorSpec("x", (1,), 1)
    after = {"x": np.array([1.0 + 2.0**-40])}
    update = build_update([spec], {"x": np.array([1.0])}, after, {"x": np.array([3.0])})
    assert update.weighted["x"].tolist() == [3 * 2.0**-40]


def test_an_integer_tensor_is_refused_by_name() -> None:
    counter = {"batches_seen": np.array([3])}
    with pytest.raises(TypeError, match="batches_seen is int64"):
        build_update([TensorSpec("batches_seen", (1,), 1)], counter, counter, {"batches_seen": np.ones(1)})
