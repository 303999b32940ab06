from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flexmoe_core.validation import FrozenModel
from simulations.results import RESULTS, run_each, run_kept


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


class Square(FrozenModel):
    """A piece of work and what came of it."""

    number: int
    squared: int


def test_what_has_its_line_is_not_worked_on_again(tmp_path: Path) -> None:
    done: list[int] = []

    def work(number: int) -> Square:
        done.append(number)
        return Square(number=number, squared=number**2)

    def run(*numbers: int) -> list[tuple[int, bool]]:
        found = run_kept(tmp_path / RESULTS, work, numbers, Square, lambda line: line.number, processes=0)
        return [(line.squared, is_new) for line, is_new in found]

    assert run(1, 2) == [(1, True), (4, True)]
    assert run(3, 2) == [(4, False), (9, True)]
    assert done == [1, 2, 3]
