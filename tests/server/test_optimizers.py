import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flexmoe_core.checkpoint import read_checkpoint, write_checkpoint
from flexmoe_core.errors import CheckpointError
from flexmoe_core.update import TensorSpec
from server.aggregation import Aggregate, FixedPointSum
from server.optimizers import ServerOptimizer, ServerOptimizerSettings
from tests.server.federations import random_update, sent, shared_tensors

RULES = ("avg", "adam", "yogi", "adagrad")
SPECS = (TensorSpec("bank", (4, 3), 4), TensorSpec("head", (2, 2), 1), TensorSpec("scale", (), 1))
State = dict[str, np.ndarray]


def settings_of(name: str, **others: float) -> ServerOptimizerSettings:
    return ServerOptimizerSettings.model_validate({"name": name, **others})


def random_round(rng: np.random.Generator, specs: tuple[TensorSpec, ...]) -> Aggregate:
    total = FixedPointSum(specs)
    total.add(random_update(rng, specs, scale=0.1))
    return total.mean()


def random_state(rng: np.random.Generator, specs: tuple[TensorSpec, ...]) -> State:
    return {spec.name: np.asarray(rng.standard_normal(spec.shape), dtype=np.float32) for spec in specs}


def same_bits(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


class NaiveScalar:
    """One number of one row, by the formulas."""

    def __init__(self, x: float, options: ServerOptimizerSettings) -> None:
        self.x, self.options, self.m, self.v, self.t = x, options, 0.0, 0.0, 0

    def step(self, delta: float, w: float) -> None:
        if w == 0:
            return
        o = self.options
        self.t += 1
        self.m = float(np.float32(o.beta_1 * self.m + (1 - o.beta_1) * delta))
        if o.name == "adam":
            v = o.beta_2 * self.v + (1 - o.beta_2) * delta**2
        elif o.name == "yogi":
            sign = (self.v > delta**2) - (self.v < delta**2)
            v = self.v - (1 - o.beta_2) * delta**2 * sign
        else:
            v = self.v + delta**2
        self.v = float(np.float32(v))
        m_hat = self.m / (1 - o.beta_1**self.t)
        v_hat = self.v if o.name == "adagrad" else self.v / (1 - o.beta_2**self.t)
        direction = delta if o.name == "avg" else m_hat / (math.sqrt(v_hat) + o.epsilon)
        self.x = float(np.float32(self.x + o.rate * w / (w + o.trust) * direction))


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=10, deadline=None)
@given(specs=shared_tensors(), seed=st.integers(0, 2**32 - 1), trust=st.sampled_from([0.0, 20.0]))
def test_rules_agree_with_a_loop_over_scalars(
    name: str, specs: tuple[TensorSpec, ...], seed: int, trust: float
) -> None:
    rng = np.random.default_rng(seed)
    options = settings_of(name, learning_rate=0.3, beta_1=0.8, beta_2=0.9, trust=trust)
    optimizer, state = options.build(specs), random_state(rng, specs)
    naive = {
        spec.name: [
            [NaiveScalar(x, options) for x in row] for row in state[spec.name].reshape(spec.row_shape).tolist()
        ]
        for spec in specs
    }
    for _ in range(4):
        aggregate = random_round(rng, specs)
        state = optimizer.step(state, aggregate)
        for spec in specs:
            delta_RF = aggregate.delta[spec.name].reshape(spec.row_shape).tolist()
            for row, deltas, w in zip(naive[spec.name], delta_RF, aggregate.support[spec.name].tolist(), strict=True):
                for scalar, delta in zip(row, deltas, strict=True):
                    scalar.step(delta, w)
    for spec in specs:
        expected = np.array([[scalar.x for scalar in row] for row in naive[spec.name]])
        actual = state[spec.name].reshape(spec.row_shape)
        np.testing.assert_allclose(actual, expected.reshape(spec.row_shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_rows_without_support_keep_bits_moments_and_count(name: str) -> None:
    rng = np.random.default_rng(1)
    optimizer, state = settings_of(name).build(SPECS), random_state(rng, SPECS)
    state["bank"][0] = -0.0  # a sum with zero would lose the sign
    for _ in range(5):
        aggregate, before, moments = random_round(rng, SPECS), state, optimizer.state_arrays()
        state = optimizer.step(before, aggregate)
        for spec in SPECS:
            idle_R = aggregate.support[spec.name] == 0
            for old, new in [
                (before[spec.name], state[spec.name]),
                *((array, optimizer.state_arrays()[key]) for key, array in moments.items()
                  if key.endswith(f".{spec.name}")),
            ]:  # fmt: skip
                rows = (spec.rows, -1)
                assert old.reshape(rows)[idle_R].tobytes() == new.reshape(rows)[idle_R].tobytes()


@pytest.mark.parametrize("name", RULES)
def test_a_rare_row_steps_as_if_it_were_alone(name: str) -> None:
    """Laziness: interleaved rounds without support change nothing about a row's path."""
    spec = TensorSpec("x", (1,), 1)
    idle = FixedPointSum([spec]).mean()
    paths = []
    for pauses in (0, 7):
        optimizer, state = settings_of(name).build([spec]), {"x": np.ones(1, np.float32)}
        for delta in (0.5, -0.25, 0.125):
            total = FixedPointSum([spec])
            total.add(sent(delta, 4.0))
            state = optimizer.step(state, total.mean())
            for _ in range(pauses):
                state = optimizer.step(state, idle)
        paths.append(state["x"].tobytes())
    assert paths[0] == paths[1]


@pytest.mark.parametrize("name", RULES)
def test_a_restored_optimizer_continues_in_the_same_bits(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / "round-3"
    rng = np.random.default_rng(2)
    rounds = [random_round(rng, SPECS) for _ in range(6)]
    state = random_state(rng, SPECS)

    def run(optimizer: ServerOptimizer, state: State, rounds: list[Aggregate]) -> State:
        for aggregate in rounds:
            state = optimizer.step(state, aggregate)
        return state

    whole = settings_of(name).build(SPECS)
    uninterrupted = run(whole, state, rounds)

    first = settings_of(name).build(SPECS)
    halfway = run(first, state, rounds[:3])
    saved = first.state_arrays()
    run(first, halfway, rounds[3:])  # what happens after the snapshot must not leak into it
    write_checkpoint(path, saved, {})

    second = settings_of(name).build(SPECS)
    second.load_state_arrays(read_checkpoint(path)[0])
    assert same_bits(run(second, halfway, rounds[3:]), uninterrupted)
    assert same_bits(second.state_arrays(), whole.state_arrays())


def test_state_of_another_model_or_rule_is_refused() -> None:
    adam = settings_of("adam").build(SPECS)
    with pytest.raises(CheckpointError, match=r"first_moment\.bank"):
        adam.load_state_arrays({})
    with pytest.raises(CheckpointError, match=r"steps\.scale"):
        adam.load_state_arrays({**adam.state_arrays(), "steps.scale": np.zeros(2, np.int64)})
    with pytest.raises(CheckpointError, match="another model or rule"):
        settings_of("avg").build(SPECS).load_state_arrays(adam.state_arrays())


@pytest.mark.parametrize("name", RULES)
def test_the_state_given_is_not_changed(name: str) -> None:
    rng = np.random.default_rng(4)
    state = random_state(rng, SPECS)
    kept = {key: array.copy() for key, array in state.items()}
    after = settings_of(name).build(SPECS).step(state, random_round(rng, SPECS))
    assert same_bits(state, kept)
    assert not same_bits(after, kept)


def test_trust_shrinks_the_step_of_a_row_that_few_patients_trained() -> None:
    spec = TensorSpec("x", (1,), 1)
    total = FixedPointSum([spec])
    total.add(sent(1.0, 2.0))
    state = {"x": np.zeros(1, np.float32)}
    assert settings_of("avg", trust=6.0).build([spec]).step(state, total.mean())["x"].item() == 0.25
    assert settings_of("avg").build([spec]).step(state, total.mean())["x"].item() == 1.0


@pytest.mark.parametrize("name", RULES[1:])
def test_the_first_step_has_the_scale_of_the_learning_rate(name: str) -> None:
    """Bias correction: a new row moves by about the rate, however large its delta."""
    spec = TensorSpec("x", (1,), 1)
    for delta in (1.0, 100.0):
        total = FixedPointSum([spec])
        total.add(sent(delta, 1.0))
        moved = settings_of(name, learning_rate=0.1).build([spec]).step({"x": np.zeros(1, np.float32)}, total.mean())
        assert moved["x"].item() == pytest.approx(0.1, rel=2e-3)


def test_settings_are_checked() -> None:
    assert (settings_of("avg").rate, settings_of("yogi").rate) == (1.0, 0.01)
    assert settings_of("yogi", learning_rate=3.0).rate == 3.0
    for wrong in (
        {"name": "sgd"},
        {"beta_1": 1.0},
        {"epsilon": 0},
        {"trust": -1},
        {"learning_rate": math.nan},
        {"lr": 1},
    ):
        with pytest.raises(ValidationError):
            ServerOptimizerSettings.model_validate(wrong)
