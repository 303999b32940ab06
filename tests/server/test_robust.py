import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.update import TensorSpec, Update, joint_norm
from server.aggregation import FixedPointSum
from server.optimizers import ServerOptimizerSettings
from server.robust import AggregationSettings, NormBoundedSum, TrimmedMean
from tests.server.federations import federations, sent

X = TensorSpec("x", (1,), 1)
Federation = tuple[tuple[TensorSpec, ...], list[Update]]


def naive_trimmed(values: list[float], faulty: int | None) -> float:
    if faulty is None:
        return statistics.median(values)
    kept = sorted(values)[faulty : len(values) - faulty]
    return float(sum(map(Fraction, kept)) / len(kept))


@settings(max_examples=60, deadline=None)
@given(federation=federations(max_sites=8), faulty=st.sampled_from([0, 1, 2, None]))
def test_trimmed_mean_and_median_agree_with_a_loop(federation: Federation, faulty: int | None) -> None:
    specs, updates = federation
    rule = TrimmedMean(specs, faulty)
    for update in updates:
        rule.add(update)
    aggregate = rule.mean()
    fewest = 3 if faulty is None else 2 * faulty + 1
    for spec in specs:
        for row in range(spec.rows):
            rows = [
                (update.weighted[spec.name].reshape(spec.row_shape)[row].astype(float) / w, w)
                for update in updates
                if spec.name in update.support and (w := update.support[spec.name][row].item()) > 0
            ]
            refused = 0 < len(rows) < fewest
            assert (row in aggregate.refused.get(spec.name, ())) == refused
            assert aggregate.contributors[spec.name][row] == len(rows)
            delta_F = aggregate.delta[spec.name].reshape(spec.row_shape)[row]
            if len(rows) < fewest:
                assert aggregate.support[spec.name][row] == 0
                assert not delta_F.any()
            else:
                median_support = statistics.median(w for _, w in rows)
                assert aggregate.support[spec.name][row] == pytest.approx(len(rows) * median_support)
                expected = [naive_trimmed([values_F[f] for values_F, _ in rows], faulty) for f in range(len(delta_F))]
                np.testing.assert_allclose(delta_F, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["trimmed", "median"])
def test_one_hostile_site_stays_between_the_honest_ones(rule: str) -> None:
    aggregator = AggregationSettings.model_validate({"rule": rule}).build([X])
    for update in (sent(1.0, 5.0), sent(1e3, 1000.0), sent(1.2, 7.0)):
        aggregator.add(update)
    aggregate = aggregator.mean()
    assert 1.0 <= aggregate.delta["x"].item() <= 1.2 + 1e-6
    assert aggregate.support["x"].item() == 21.0  # three times the median 7: the claim of 1000 buys no trust


def test_a_row_with_too_few_contributors_keeps_the_servers_value() -> None:
    spec = TensorSpec("x", (2,), 2)
    rule = TrimmedMean([spec], faulty=1)
    for w_R in ([1.0, 1.0], [1.0, 1.0], [1.0, 0.0]):
        rule.add(Update({"x": np.array(w_R, np.float32)}, {"x": np.array(w_R)}))
    aggregate = rule.mean()
    assert aggregate.refused == {"x": (1,)}
    after = ServerOptimizerSettings().build([spec]).step({"x": np.zeros(2, np.float32)}, aggregate)
    assert after["x"].tolist() == [1.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(federations())
def test_a_loose_norm_bound_is_the_plain_sum_and_a_tight_one_clips(federation: Federation) -> None:
    specs, updates = federation
    plain, loose = FixedPointSum(specs), NormBoundedSum(specs, 1e6)
    for update in updates:
        plain.add(update)
        loose.add(update)
        norm, alone = joint_norm(update, specs), NormBoundedSum(specs, 0.5)
        alone.add(update)
        moved = np.sqrt(sum(np.square(delta).sum() for delta in alone.mean().delta.values()))
        assert moved == pytest.approx(min(norm, 0.5), rel=1e-5)
        assert alone.clipped == (norm > 0.5)
    assert loose.clipped == 0
    expected = plain.mean()
    for name, delta in loose.mean().delta.items():
        np.testing.assert_array_equal(delta, expected.delta[name])


def test_clipping_keeps_the_direction_of_the_whole_update() -> None:
    spec = TensorSpec("x", (2,), 1)
    rule = NormBoundedSum([spec], 1.0)
    rule.add(sent([3.0, 4.0], 2.0))
    np.testing.assert_allclose(rule.mean().delta["x"], [0.6, 0.8], rtol=1e-6)
    assert rule.mean().support["x"].item() == 2.0
