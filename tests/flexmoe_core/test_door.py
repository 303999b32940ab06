from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from flexmoe_core.door import UpdateLimits, validate_reply
from flexmoe_core.update import TensorSpec, Update
from server.aggregation import FixedPointSum
from tests.server.federations import federations

SPECS = (TensorSpec("experts", (2, 3), 2), TensorSpec("head", (2,), 1))
LIMITS = UpdateLimits(max_support=100.0, max_norm=10.0)


def well_formed() -> tuple[dict[str, Any], dict[str, Any]]:
    weighted = {"experts": np.array([[1, 2, 3], [0, 0, 0]], np.float32), "head": np.ones(2, np.float32)}
    return weighted, {"experts": np.array([5.0, 0.0]), "head": np.array([2.0])}


def test_sound_and_partial_updates_pass() -> None:
    weighted, support = well_formed()
    assert validate_reply(Update(weighted, support), SPECS, LIMITS) == []
    assert validate_reply(Update({}, {}), SPECS, LIMITS) == []
    assert validate_reply(Update({"head": weighted["head"]}, {"head": support["head"]}), SPECS, LIMITS) == []


@settings(max_examples=30, deadline=None)
@given(federations())
def test_random_honest_updates_pass(federation: tuple[tuple[TensorSpec, ...], list[Update]]) -> None:
    specs, updates = federation
    assert all(validate_reply(update, specs, UpdateLimits()) == [] for update in updates)


Breaker = Callable[[dict[str, Any], dict[str, Any]], object]
FAULTS: list[tuple[Breaker, str]] = [
    (lambda w, s: w.update(tail=w["head"]), "weighted delta of 'tail': no such shared tensor"),
    (lambda w, s: s.update(tail=s["head"]), "support of 'tail': no such shared tensor"),
    (lambda w, s: w.pop("head"), "head: weighted delta and support must come together"),
    (lambda w, s: s.pop("head"), "head: weighted delta and support must come together"),
    (lambda w, s: w.update(head=np.ones(3, np.float32)), "weighted delta of head has shape (3,), expected (2,)"),
    (lambda w, s: w.update(head=np.ones(2)), "weighted delta of head has dtype float64, expected float32"),
    (lambda w, s: w.update(head=np.ones(2, ">f4")), "weighted delta of head has dtype >f4, expected float32"),
    (lambda w, s: w.update(head=[1.0, 1.0]), "weighted delta of head is not an array"),
    (lambda w, s: w.update(head=np.ma.ones(2, np.float32)), "weighted delta of head is not an array"),
    (lambda w, s: w["head"].fill(np.nan), "weighted delta of head has NaN or infinite values"),
    (lambda w, s: w["head"].fill(-np.inf), "weighted delta of head has NaN or infinite values"),
    (lambda w, s: w["head"].fill(2**20), "weighted delta of head is outside the fixed-point range of 2**20"),
    (lambda w, s: s.update(head=np.array(2.0)), "support of head has shape (), expected (1,)"),
    (lambda w, s: s["head"].fill(np.nan), "support of head has NaN or infinite values"),
    (lambda w, s: s["head"].fill(-1), "support of head is negative"),
    (lambda w, s: s["head"].fill(100.5), "support of head is above 100 patients"),
    (lambda w, s: s["head"].fill(1e-7), "support of head is positive but below 1.52588e-05 patients"),
    (lambda w, s: w["experts"].fill(1), "weighted delta of experts is not zero where its support is"),
    (lambda w, s: w["head"].fill(100), "the delta's norm 70.71 is above the bound 10"),
]


@pytest.mark.parametrize(("break_it", "problem"), FAULTS, ids=[problem for _, problem in FAULTS])
def test_each_fault_is_named(break_it: Breaker, problem: str) -> None:
    weighted, support = well_formed()
    break_it(weighted, support)
    assert problem in validate_reply(Update(weighted, support), SPECS, LIMITS)


def test_all_faults_are_found_at_once() -> None:
    weighted, support = well_formed()
    weighted["head"] = np.full(2, np.nan, np.float64)
    support["head"] = np.full(1, np.nan)
    support["experts"] = np.array([-1.0, 500.0])
    weighted["extra"] = np.ones(1)
    problems = validate_reply(Update(weighted, support), SPECS, LIMITS)
    assert len(problems) == 5
    for word in ("extra", "float64", "NaN", "negative", "above"):
        assert any(word in problem for problem in problems)


def test_many_long_unknown_names_give_one_short_line() -> None:
    flood = {f"{'n' * 10_000}\n{index}": None for index in range(1000)}
    problems = validate_reply(Update(flood, {}), SPECS, LIMITS)  # type: ignore[arg-type]  # the fault itself
    assert len(problems) == 1
    assert problems[0].endswith("and 995 more: no such shared tensor")
    assert len(problems[0]) < 600


ARRAYS = numpy_st.arrays(
    dtype=numpy_st.scalar_dtypes() | st.just(np.dtype(object)) | numpy_st.unicode_string_dtypes(),
    shape=st.sampled_from([(), (0,), (1,), (2,), (2, 3), (1, 2, 3)]),
    fill=st.nothing(),
)
GARBAGE = st.one_of(
    st.none(), st.text(), st.integers(), st.lists(st.floats()), ARRAYS, st.builds(lambda: np.full(2, {})),
    st.builds(lambda: np.broadcast_to(np.float32(1), (10**6, 10**6))),
)  # fmt: skip
NAMES = st.sampled_from(["experts", "head"]) | st.text(max_size=5) | st.integers()
HALVES = st.dictionaries(NAMES, GARBAGE, max_size=4) | GARBAGE


@settings(max_examples=150, deadline=None)
@given(HALVES, HALVES)
def test_garbage_never_raises_and_what_passes_can_be_summed(weighted: object, support: object) -> None:
    update = Update(weighted, support)  # type: ignore[arg-type]  # the fault itself
    if not validate_reply(update, SPECS, LIMITS):
        FixedPointSum(SPECS).add(update)


def test_what_is_no_update_is_refused() -> None:
    assert validate_reply({"weighted": {}}, SPECS, LIMITS) == ["the reply holds no update"]
