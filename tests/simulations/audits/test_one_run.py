from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from simulations.audits.one_run import best_bound, clopper_pearson, epsilon_lower_bound, p_value


def test_the_values_that_the_paper_prints() -> None:
    assert p_value(100, 100, 75, math.log(3), 0.0) == pytest.approx(0.5535, abs=1e-3)
    assert epsilon_lower_bound(1000, 100, 75, 1e-4, 0.95) == pytest.approx(0.673, abs=1e-3)
    assert epsilon_lower_bound(100_000, 1510, 1439, 1e-5, 0.95) == pytest.approx(2.675, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 2.0])
def test_without_delta_it_is_the_tail_of_every_outcome_counted(epsilon: float) -> None:
    chance, guesses = math.exp(epsilon) / (1 + math.exp(epsilon)), 7
    for correct in range(guesses + 1):
        counted = sum(
            chance ** sum(outcome) * (1 - chance) ** (guesses - sum(outcome))
            for outcome in product((0, 1), repeat=guesses)
            if sum(outcome) >= correct
        )
        assert p_value(50, guesses, correct, epsilon, 0.0) == pytest.approx(counted, abs=1e-12)


def test_delta_adds_the_steepest_mean_below_the_count() -> None:
    canaries, guesses, correct, epsilon, delta = 60, 40, 34, 1.0, 1e-3
    chance = 1 / (1 + math.exp(-epsilon))
    means = [
        sum(binom.pmf(count, guesses, chance) for count in range(correct - i, correct)) / i
        for i in range(1, correct + 1)
    ]
    expected = binom.sf(correct - 1, guesses, chance) + 2 * canaries * delta * max(means)
    assert p_value(canaries, guesses, correct, epsilon, delta) == pytest.approx(expected, rel=1e-9)


def test_the_bound_is_the_point_where_the_claim_is_refuted() -> None:
    bound = epsilon_lower_bound(1000, 400, 370, 1e-5)
    assert p_value(1000, 400, 370, bound - 1e-6, 1e-5) < 0.01 <= p_value(1000, 400, 370, bound + 1e-6, 1e-5)


def test_more_correct_guesses_prove_more_and_delta_and_confidence_prove_less() -> None:
    bounds = [epsilon_lower_bound(1000, 200, correct, 1e-5) for correct in range(0, 201, 5)]
    assert bounds == sorted(bounds)
    assert bounds[20] == 0.0  # half of them right is no better than a coin
    assert bounds[-1] > 3.0
    assert epsilon_lower_bound(1000, 200, 190, 1e-3) < epsilon_lower_bound(1000, 200, 190, 1e-5)
    assert epsilon_lower_bound(1000, 200, 190, 1e-5, 0.999) < epsilon_lower_bound(1000, 200, 190, 1e-5, 0.9)
    assert epsilon_lower_bound(4000, 200, 190, 1e-4) < epsilon_lower_bound(400, 200, 190, 1e-4)


def test_all_guesses_right_has_a_closed_form() -> None:
    assert epsilon_lower_bound(500, 500, 500, 0.0) == pytest.approx(math.log(1 / (0.01 ** (-1 / 500) - 1)), abs=1e-6)


def test_a_randomized_response_rarely_beats_its_own_epsilon() -> None:
    generator, epsilon = np.random.default_rng(0), 1.5
    correct = generator.binomial(300, 1 / (1 + math.exp(-epsilon)), size=2000)
    above = [epsilon_lower_bound(300, 300, int(one), 0.0) > epsilon for one in np.unique(correct)]
    share = sum(np.mean(correct == one) for one, beats in zip(np.unique(correct), above, strict=True) if beats)
    assert 0.0 < share < 0.02


def test_more_guesses_than_canaries_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be correct"):
        p_value(10, 12, 3, 1.0, 0.0)


def test_clopper_pearson_agrees_with_published_values() -> None:
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert clopper_pearson(10, 10) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    assert clopper_pearson(7, 20) == (pytest.approx(0.1539, abs=1e-4), pytest.approx(0.5922, abs=1e-4))
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_the_best_of_several_numbers_pays_for_the_choice() -> None:
    included = np.arange(1000) % 2 == 0
    scores = included + np.random.default_rng(1).normal(0, 0.4, 1000)
    alone = best_bound(scores, included, [300], 1e-5)
    chosen = best_bound(scores, included, [100, 300, 1000], 1e-5)
    assert alone.correct == 297
    assert 0 < epsilon_lower_bound(1000, 300, alone.correct, 1e-5, 0.99) == alone.epsilon
    single = [best_bound(scores, included, [count], 1e-5, 1 - 0.01 / 3).epsilon for count in (100, 300, 1000)]
    assert chosen.epsilon == max(single)
    assert chosen.guesses != 300 or chosen.epsilon < alone.epsilon


def test_guesses_of_pure_chance_prove_nothing() -> None:
    generator = np.random.default_rng(2)
    included = generator.random(1000) < 0.5
    assert best_bound(generator.normal(size=1000), included, [100, 300], 1e-5).epsilon == 0.0
