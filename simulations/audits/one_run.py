"""What guesses about canaries prove: a lower bound on epsilon from one training run.

Each of m canaries was in the data with chance 1/2, independently. An auditor abstains or guesses of each whether it
was. Under (epsilon, delta)-DP, correct guesses are hardly more than a binomial of chance e^epsilon / (1 + e^epsilon)
gives (Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", corollary 5.4); more of them
refute the claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import beta, binom

from flexmoe_core.scores import FloatArray
from simulations.audits.roc import BoolArray

BISECTIONS = 40
HIGHEST = 64.0
"""Where the search for a bound ends: e^-64 is below what float64 can tell from no chance at all."""


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """At most the chance of so many correct guesses under (epsilon, delta)-DP: small values refute the claim.

    Raises ValueError unless 0 <= correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} of {guesses} guesses about {canaries} canaries cannot be correct")
    chance = expit(epsilon)
    tail = float(binom.sf(correct - 1, guesses, chance))
    if delta == 0 or correct == 0:
        return min(tail, 1.0)
    # What delta adds: 2 m delta times the steepest mean of the probabilities just below the count.
    just_below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, chance))
    steepest = float((just_below / np.arange(1, correct + 1)).max())
    return min(tail + 2 * canaries * delta * steepest, 1.0)


def epsilon_lower_bound(canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.99) -> float:
    """The largest epsilon that so many correct guesses refute, with that confidence; 0 where they refute none."""
    alpha = 1.0 - confidence

    def is_refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon, delta) < alpha

    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, HIGHEST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934); (0, 1) without trials."""
    tail = (1.0 - confidence) / 2
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


@dataclass(frozen=True)
class OneRunBound:
    """The best of some numbers of guesses: how many, how many of them correct, and the epsilon that they prove."""

    guesses: int
    correct: int
    epsilon: float


def best_bound(
    scores: FloatArray, included: BoolArray, guesses: Sequence[int], delta: float, confidence: float = 0.99
) -> OneRunBound:
    """Guess that the highest scores were in and the lowest out, and take the number of guesses that proves most.

    ``scores`` (m,) and ``included`` (m,) bool. The numbers of ``guesses`` are even and chosen beforehand; each is
    tested at the error 1 - confidence divided by how many they are, so that the best one keeps the confidence.
    """
    order = np.argsort(scores, kind="stable")
    each = 1.0 - (1.0 - confidence) / len(guesses)
    bounds = []
    for count in guesses:
        lowest, highest = order[: count // 2], order[len(order) - count // 2 :]
        correct = int(np.count_nonzero(included[highest]) + np.count_nonzero(~included[lowest]))
        bounds.append(OneRunBound(count, correct, epsilon_lower_bound(len(order), count, correct, delta, each)))
    return max(bounds, key=lambda bound: bound.epsilon)
