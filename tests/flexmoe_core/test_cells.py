from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.cells import merge_small_cells
from flexmoe_core.scores import Scores
from tests.flexmoe_core.predictions import random_predictions

SIZES = st.dictionaries(st.integers(1, 63), st.integers(0, 12), max_size=7)


def cells_of(sizes: dict[int, int]) -> dict[int, Scores]:
    return {mask: Scores.of(*random_predictions(np.random.default_rng(mask), n)) for mask, n in sizes.items()}


def merged_sizes(sizes: dict[int, int], minimum: int) -> dict[int | None, int]:
    return {mask: scores.n for mask, scores in merge_small_cells(cells_of(sizes), minimum).items()}


def test_large_cells_stay_as_they_are() -> None:
    cells = cells_of({3: 9, 1: 5})
    merged = merge_small_cells(cells, 5)
    assert list(merged) == [1, 3]
    assert all(merged[mask] is cells[mask] for mask in cells)


def test_small_cells_that_suffice_together_hide_each_other() -> None:
    assert merged_sizes({1: 20, 2: 3, 4: 2, 8: 5}, 5) == {1: 20, 8: 5, None: 5}


def test_a_lonely_small_cell_takes_the_next_smallest_with_it() -> None:
    assert merged_sizes({1: 20, 2: 3, 4: 7, 8: 9}, 5) == {1: 20, 8: 9, None: 10}


def test_of_equal_cells_the_lower_mask_joins() -> None:
    assert merged_sizes({6: 7, 5: 7, 2: 1}, 5) == {6: 7, None: 8}


def test_a_site_below_the_minimum_says_nothing() -> None:
    assert merged_sizes({1: 2, 2: 2}, 5) == {}
    assert merged_sizes({1: 4}, 5) == {}
    assert merged_sizes({}, 5) == {}


def test_combinations_without_patients_pull_nobody_in() -> None:
    assert merged_sizes({1: 6, 2: 0}, 5) == {1: 6}
    assert merged_sizes({1: 0}, 5) == {}


def test_a_minimum_of_one_hides_nothing() -> None:
    assert merged_sizes({1: 1, 2: 3}, 1) == {1: 1, 2: 3}


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 10))
def test_nothing_small_is_returned_and_nobody_is_lost(sizes: dict[int, int], minimum: int) -> None:
    cells = cells_of(sizes)
    total = sum(cells.values(), start=Scores.empty(2))
    merged = merge_small_cells(cells, minimum)
    assert all(scores.n >= minimum for scores in merged.values())
    if total.n >= minimum:
        assert sum(merged.values(), start=Scores.empty(2)) == total
    else:
        assert merged == {}
    assert all(merged[mask] == cells[mask] for mask in merged if mask is not None)
    assert (None in merged) == (total.n >= minimum and any(0 < n < minimum for n in sizes.values()))


@settings(deadline=None, max_examples=40)
@given(SIZES, st.integers(1, 10), st.data())
def test_the_order_of_cells_does_not_matter(sizes: dict[int, int], minimum: int, data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(sizes.items()))))
    first, second = (merge_small_cells(cells_of(order), minimum) for order in (sizes, shuffled))
    assert list(first.items()) == list(second.items())
