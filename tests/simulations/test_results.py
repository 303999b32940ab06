from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulations.results import run_each


def inverse(number: int) -> float:
    return 1 / number


def until_error(found: Iterator[float], into: list[float]) -> None:
    for one in found:
        into.append(one)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_piece_that_fails_costs_only_itself(processes: int) -> None:
    done: list[float] = []
    with pytest.raises(ZeroDivisionError):
        until_error(run_each(inverse, [1, 0, 2, 4], processes), done)
    assert sorted(done) == [0.25, 0.5, 1.0]
