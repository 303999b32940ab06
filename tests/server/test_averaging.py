from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from server.averaging import RoundAverage

STATES = st.lists(arrays(np.float32, (2, 3), elements=st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=5)


def averaged(decay: float, states: Sequence[np.ndarray]) -> RoundAverage:
    average = RoundAverage(decay)
    for state in states:
        average.add({"x": state})
    return average


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 0.99), STATES)
def test_the_mean_weighs_rounds_by_their_age(decay: float, states: list[np.ndarray]) -> None:
    weights = decay ** np.arange(len(states))[::-1]
    expected = np.tensordot(weights, np.stack(states).astype(np.float64), axes=1) / weights.sum()
    mean = averaged(decay, states).mean()["x"]
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(STATES)
def test_without_decay_the_mean_is_the_last_round(states: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(averaged(0.0, states).mean()["x"], states[-1])


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.99), st.floats(-(2.0**99), 2.0**99, width=32), st.integers(1, 9))
def test_what_never_changed_keeps_its_value(decay: float, value: float, rounds: int) -> None:
    state = np.array([value], np.float32)
    np.testing.assert_array_equal(averaged(decay, [state] * rounds).mean()["x"], state)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.99), STATES, st.integers(0, 5))
def test_an_average_goes_on_after_a_checkpoint_to_the_same_bits(
    decay: float, states: list[np.ndarray], after: int
) -> None:
    resumed = RoundAverage(decay)
    resumed.load_state_arrays(averaged(decay, states[:after]).state_arrays())
    for state in states[after:]:
        resumed.add({"x": state})
    assert resumed.mean()["x"].tobytes() == averaged(decay, states).mean()["x"].tobytes()


def test_a_number_without_axes_is_averaged_too() -> None:
    assert averaged(0.5, [np.array(1, np.float32), np.array(4, np.float32)]).mean()["x"] == pytest.approx(3.0)


def test_states_are_not_changed_by_later_rounds() -> None:
    state = np.ones(2, np.float32)
    average = averaged(0.5, [state])
    state[:] = 9
    np.testing.assert_array_equal(average.mean()["x"], np.ones(2))
