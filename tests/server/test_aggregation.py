import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.door import UpdateLimits, validate_reply
from flexmoe_core.update import MAX_SITES, TensorSpec, Update, build_update
from server.aggregation import Aggregate, Aggregator, FixedPointSum
from server.optimizers import ServerOptimizerSettings
from server.robust import AggregationSettings
from tests.server.federations import federations, random_update, sent

X = TensorSpec("x", (1,), 1)


def mean_of(specs: tuple[TensorSpec, ...], updates: list[Update]) -> Aggregate:
    total = FixedPointSum(specs)
    for update in updates:
        total.add(update)
    return total.mean()


def bits(aggregate: Aggregate) -> list[bytes]:
    parts = (aggregate.delta, aggregate.support, aggregate.contributors)
    return [array.tobytes() for part in parts for _, array in sorted(part.items())]


@settings(max_examples=60, deadline=None)
@given(federations())
def test_mean_is_that_of_exact_fractions(federation: tuple[tuple[TensorSpec, ...], list[Update]]) -> None:
    specs, updates = federation
    aggregate = mean_of(specs, updates)
    for spec in specs:
        delta_RF = aggregate.delta[spec.name].reshape(spec.row_shape)
        assert aggregate.delta[spec.name].shape == spec.shape
        holders = [update for update in updates if spec.name in update.weighted]
        for row in range(spec.rows):
            w = [Fraction(update.support[spec.name][row].item()) for update in holders]
            assert aggregate.contributors[spec.name][row] == sum(1 for value in w if value > 0)
            assert aggregate.support[spec.name][row] == pytest.approx(float(sum(w)), abs=1e-8)
            for column in range(spec.row_shape[1]):
                pairs = [
                    Fraction(update.weighted[spec.name].reshape(spec.row_shape)[row, column].item())
                    for update in holders
                ]
                expected = float(sum(pairs) / sum(w)) if sum(w) else 0.0
                assert delta_RF[row, column] == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("rule", ["mean", "norm-bounded", "trimmed", "median"])
@settings(max_examples=15, deadline=None)
@given(federation=federations(), seed=st.integers(0, 99))
def test_any_order_of_arrival_gives_the_same_bits(
    rule: str, federation: tuple[tuple[TensorSpec, ...], list[Update]], seed: int
) -> None:
    specs, updates = federation
    shuffled = random.Random(seed).sample(updates, len(updates))
    results = []
    for order in (updates, shuffled):
        aggregator: Aggregator = AggregationSettings.model_validate({"rule": rule}).build(specs)
        for update in order:
            aggregator.add(update)
        results.append(bits(aggregator.mean()))
    assert results[0] == results[1]


def test_a_bad_update_leaves_the_sum_as_it_was() -> None:
    specs = (X, TensorSpec("y", (2,), 1))
    total = FixedPointSum(specs)
    total.add(sent(1.0, 2.0))
    before = bits(total.mean())
    good, ones = np.ones(1, np.float32), np.ones(1)
    faults: list[tuple[str, np.ndarray, np.ndarray]] = [
        ("y", np.array([1.0, np.nan], np.float32), ones),
        ("y", np.ones(3, np.float32), ones),
        ("y", np.ones(2, np.float32), np.ones(2)),
        ("y", np.ones(2, np.float32), np.array([np.inf])),
        ("y", np.ones(2, np.int64), ones),
        ("z", good, ones),
    ]
    for name, bad, w in faults:
        with pytest.raises(ValueError, match=name):
            total.add(Update({"x": good, name: bad}, {"x": ones, name: w}))
    assert bits(total.mean()) == before


def test_more_updates_than_the_code_can_hold_are_refused() -> None:
    total = FixedPointSum([X])
    for _ in range(MAX_SITES):
        total.add(sent(0.0, 1.0))
    with pytest.raises(OverflowError, match=str(MAX_SITES)):
        total.add(sent(0.0, 1.0))


def test_later_updates_do_not_change_a_mean_already_given() -> None:
    total = FixedPointSum([X])
    total.add(sent(1.0, 1.0))
    first = total.mean()
    total.add(sent(3.0, 1.0))
    assert (first.delta["x"].item(), first.support["x"].item(), first.contributors["x"].item()) == (1.0, 1.0, 1)
    assert total.mean().delta["x"].item() == 2.0


def test_one_full_batch_sgd_step_over_sites_is_one_pooled_step() -> None:
    rng = np.random.default_rng(0)
    features, target = rng.standard_normal((30, 4)), rng.standard_normal(30)
    theta, spec = {"theta": rng.standard_normal(4)}, TensorSpec("theta", (4,), 1)

    def step(rows: slice) -> dict[str, np.ndarray]:
        x, y = features[rows], target[rows]
        return {"theta": theta["theta"] - 0.1 * x.T @ (x @ theta["theta"] - y) / len(y)}

    sites = [slice(0, 3), slice(3, 25), slice(25, 30)]
    updates = [
        build_update([spec], theta, step(site), {"theta": np.array([float(site.stop - site.start)])})
        for site in sites
    ]
    merged = theta["theta"] + mean_of((spec,), updates).delta["theta"]
    np.testing.assert_allclose(merged, step(slice(0, 30))["theta"], atol=1e-6)


# What Flower's own averaging gets wrong under partial participation, one test each.


def test_a_site_without_an_expert_does_not_stop_the_round() -> None:
    specs = (X, TensorSpec("expert", (1,), 1))
    both = Update(
        {"x": np.array([4.0], np.float32), "expert": np.array([2.0], np.float32)},
        {"x": np.array([1.0]), "expert": np.array([1.0])},
    )
    assert [validate_reply(update, specs, UpdateLimits()) for update in (both, sent(0.0, 1.0))] == [[], []]
    aggregate = mean_of(specs, [both, sent(0.0, 1.0)])
    assert {name: delta.item() for name, delta in aggregate.delta.items()} == {"x": 2.0, "expert": 2.0}


def test_an_expert_of_one_small_site_arrives_whole() -> None:
    specs = (X, TensorSpec("expert", (1,), 1))
    small = Update({"expert": np.array([10.0], np.float32)}, {"expert": np.array([10.0])})
    aggregate = mean_of(specs, [small, sent(0.0, 30.0)])
    assert aggregate.delta["expert"].item() == 1.0
    assert aggregate.support["expert"].item() == 10.0


def test_integer_buffers_are_refused_by_name_not_averaged() -> None:
    counter = Update({"x": np.array([3])}, {"x": np.array([1.0])})
    assert validate_reply(counter, [X], UpdateLimits()) == ["weighted delta of x has dtype int64, expected float32"]
    with pytest.raises(ValueError, match="x"):
        FixedPointSum([X]).add(counter)
    with pytest.raises(TypeError, match="x is int64"):
        ServerOptimizerSettings().build([X]).step({"x": np.array([3])}, mean_of((X,), []))


def test_reversed_arrival_changes_no_bit_where_float32_sums_change_many() -> None:
    rng = np.random.default_rng(3)
    spec = TensorSpec("x", (1000,), 1)
    updates = [random_update(rng, (spec,)) for _ in range(12)]
    updates = [update for update in updates if update.weighted]
    forward, backward = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    for first, last in zip(updates, updates[::-1], strict=True):
        forward += first.weighted["x"]
        backward += last.weighted["x"]
    assert np.count_nonzero(forward != backward) > 100
    assert bits(mean_of((spec,), updates)) == bits(mean_of((spec,), updates[::-1]))


@pytest.mark.parametrize("updates", [[], [sent(0.0, 0.0)], [sent(0.0, 0.0), sent(0.0, 0.0)]])
def test_all_weights_zero_keeps_the_servers_value(updates: list[Update]) -> None:
    aggregate = mean_of((X,), updates)
    assert (aggregate.delta["x"].item(), aggregate.support["x"].item()) == (0.0, 0.0)
    state = {"x": np.array([0.1], np.float32)}
    for name in ("avg", "adam", "yogi", "adagrad"):
        optimizer = ServerOptimizerSettings.model_validate({"name": name}).build([X])
        assert optimizer.step(state, aggregate)["x"].tobytes() == state["x"].tobytes()
