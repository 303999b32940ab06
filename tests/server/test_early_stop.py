from __future__ import annotations

import json
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from server.early_stop import EarlyStop
from server.settings import EarlyStopSettings

VALUES = st.lists(st.none() | st.floats(0, 1), max_size=12)


def stops(values: Iterable[float | None], metric: str = "auroc", patience: int = 2) -> list[bool]:
    early_stop = EarlyStop(EarlyStopSettings.model_validate({"metric": metric, "patience": patience}))
    return [early_stop.should_stop(value) for value in values]


def test_patience_is_counted_from_the_best_round() -> None:
    assert stops([0.5, 0.6, 0.55, 0.6]) == [False, False, False, True]
    assert stops([0.5, 0.4, 0.6, 0.5, 0.5]) == [False, False, False, False, True]


def test_a_loss_improves_downwards() -> None:
    assert stops([0.5, 0.4, 0.3], "log_loss") == [False, False, False]
    assert stops([0.3, 0.4, 0.5], "log_loss") == [False, False, True]
    assert stops([0.3, 0.4, 0.5], "brier", patience=1) == [False, True, True]


def test_an_equal_value_is_no_improvement() -> None:
    assert stops([0.5, 0.5], patience=1) == [False, True]


def test_a_missing_value_is_no_improvement() -> None:
    assert stops([None, None]) == [False, True]
    assert stops([0.5, None, 0.6, None, None]) == [False, False, False, False, True]


@given(VALUES)
def test_without_patience_it_never_stops(values: list[float | None]) -> None:
    assert not any(stops(values, patience=0))


@settings(max_examples=50, deadline=None)
@given(VALUES, st.integers(0, 12), st.integers(1, 3))
def test_it_goes_on_after_a_checkpoint(values: list[float | None], after: int, patience: int) -> None:
    chosen = EarlyStopSettings(metric="auroc", patience=patience)
    first, resumed = EarlyStop(chosen), EarlyStop(chosen)
    for value in values[:after]:
        first.should_stop(value)
    resumed.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    later = [resumed.should_stop(value) for value in values[after:]]
    assert later == stops(values, patience=patience)[after:]
