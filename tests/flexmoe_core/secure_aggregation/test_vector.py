import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.secure_aggregation.vector import (
    CHECK_NUMBERS,
    Layout,
    codes_of_update,
    layout_of_rows,
    layout_of_update,
    rows_from_counts,
    sums_of_update,
    votes,
)
from flexmoe_core.update import MAX_SITES, TensorSpec, Update
from server.aggregation import FixedPointSum, divide
from tests.server.federations import federations, sent

X = (TensorSpec("x", (3, 2), 3), TensorSpec("y", (4,), 1))


@given(federations(), st.randoms())
def test_the_sum_of_the_vectors_is_the_plain_sum_bit_for_bit(drawn, random) -> None:  # noqa: ANN001
    specs, updates = drawn
    layout = layout_of_update(specs)
    released = {spec.name: np.array([random.random() < 0.7 for _ in range(spec.rows)], bool) for spec in specs}
    total_V, plain = np.zeros(layout.numbers, np.uint64), FixedPointSum(specs)
    for update in updates:
        total_V += layout.encode(codes_of_update(update, specs, released))
        plain.add(update)
    weighted, support = sums_of_update(layout.decode(total_V, len(updates)), max(len(updates), 1), 100.0)
    found, expected = divide(specs, weighted, support), plain.mean()
    for spec in (spec for spec in specs if spec.rows):
        rows_R = released[spec.name]
        for field in ("delta", "support"):
            ours = getattr(found, field)[spec.name].reshape(spec.rows, -1)
            theirs = getattr(expected, field)[spec.name].reshape(spec.rows, -1)
            np.testing.assert_array_equal(ours[rows_R], theirs[rows_R])
            assert not ours[~rows_R].any()
    assert not found.contributors


def test_the_largest_sum_does_not_wrap_around() -> None:
    specs = (TensorSpec("x", (1,), 1),)
    largest = np.float32(2**20 - 2.0**-4)
    layout, all_rows = layout_of_update(specs), {"x": np.ones(1, bool)}
    for sign in (1, -1):
        one_V = layout.encode(
            codes_of_update(Update({"x": sign * largest[None]}, {"x": np.array([1.0])}), specs, all_rows)
        )
        blocks = layout.decode(one_V * np.uint64(MAX_SITES), MAX_SITES)
        assert blocks["weighted/x"][0] == sign * MAX_SITES * int(np.float64(largest) * 2**32)


def test_a_sum_that_is_none_is_noticed() -> None:
    layout = layout_of_update(X)
    rng = np.random.default_rng(0)
    one_V = layout.encode({})
    assert layout.decode(one_V + one_V, 2)
    for wrong_V in (
        rng.integers(0, 2**64, layout.numbers, dtype=np.uint64),
        one_V,
        np.append(one_V + one_V, np.uint64(2)),
        (one_V + one_V)[1:],
    ):
        with pytest.raises(MaskingRefused, match="not a sum"):
            layout.decode(wrong_V, 2)
    one_V[-CHECK_NUMBERS] += np.uint64(1)
    with pytest.raises(MaskingRefused, match="not a sum"):
        layout.decode(one_V, 1)


def test_sums_outside_their_range_are_noticed() -> None:
    blocks = {"weighted/x": np.array([2 * 2**52 - 1]), "support/x": np.array([2 * 7 * 2**32])}
    assert sums_of_update(blocks, 2, 7.0)
    for name, code in (
        ("weighted/x", 2 * 2**52),
        ("weighted/x", -2 * 2**52),
        ("support/x", -1),
        ("support/x", 2**36),
    ):
        with pytest.raises(MaskingRefused, match="outside its range"):
            sums_of_update(blocks | {name: np.array([code])}, 2, 7.0)


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(ValueError, match="no such block"):
        Layout((("a", (1,)),)).encode({"b": np.zeros(1, np.int64)})


def test_rows_are_released_by_their_number_of_sites() -> None:
    layout = layout_of_rows(X)
    site_rows = [{"x": np.array([3.0, 0.5, 0.0]), "y": np.array([1])}] * 2 + [{"x": np.array([3.0, 0, 0])}]
    total_V = np.sum([layout.encode(votes(rows)) for rows in site_rows], axis=0, dtype=np.uint64)
    released = rows_from_counts(layout.decode(total_V, 3), 3)
    assert {name: rows_R.tolist() for name, rows_R in released.items()} == {"x": [True, False, False], "y": [False]}


def test_a_row_that_may_not_be_released_leaves_no_trace() -> None:
    specs = (TensorSpec("x", (1,), 1),)
    codes = codes_of_update(sent(0.5, 3.0), specs, {"x": np.zeros(1, bool)})
    assert not any(code.any() for code in codes.values())
