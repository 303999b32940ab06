"""What the study found of each arm, over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from simulations.audits.roc import Estimate
from simulations.benchmark_data import DataSet
from simulations.comparison import Result
from simulations.seed_intervals import seed_interval
from simulations.studies.privacy_arms import Arm
from simulations.studies.privacy_jobs import JobResult

FEWEST_SEEDS = 3
"""Of two, an interval would say that nothing is known: it is six times as wide as the difference between them."""

Measure = Callable[[JobResult], float | None]


@dataclass(frozen=True)
class Findings:
    """All results on one data set, arms in the order of the tables. An arm may lack seeds."""

    data: DataSet
    results: tuple[JobResult, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Those with at least one result."""
        return tuple(dict.fromkeys(result.job.arm for result in self.results))

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The finite ones, ascending."""
        return tuple(sorted({arm.epsilon for arm in self.arms if arm.epsilon is not None}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all arms."""
        return tuple(sorted({result.job.seed for result in self.results}))

    def of(self, arm: Arm) -> dict[int, JobResult]:
        """An arm's results by seed."""
        return {result.job.seed: result for result in self.results if result.job.arm == arm}

    def estimate(self, arm: Arm, measure: Measure) -> Estimate:
        """Mean over seeds with its 95% interval, if they are enough; no value where it is undefined."""
        return self._mean([measure(result) for result in self.of(arm).values()], measure)

    def difference(self, arm: Arm, other: Arm, measure: Measure) -> Estimate:
        """The arm minus the other one, seed by seed."""
        first, second = self.of(arm), self.of(other)
        pairs = [(measure(first[seed]), measure(second[seed])) for seed in first if seed in second]
        return self._mean([None if a is None or b is None else a - b for a, b in pairs], measure)

    def _mean(self, values: Sequence[float | None], measure: Measure) -> Estimate:
        defined = [value for value in values if value is not None]
        if not defined:
            return Estimate(None)
        redrawn = self._validation if measure in ATTACKS else self.data.redrawn
        interval = seed_interval(defined, redrawn=redrawn)
        if interval.count < FEWEST_SEEDS:
            return Estimate(interval.mean)
        return Estimate(interval.mean, interval.low, interval.high)

    @property
    def _validation(self) -> float:
        """The share of the same patients whom each seed holds out anew, as non-members."""
        return getattr(self.data, "validation", 0.0)


def findings_of(results: Iterable[JobResult], arms: Sequence[Arm]) -> list[Findings]:
    """By data set."""
    ordered = sorted(results, key=lambda result: (arms.index(result.job.arm), result.job.seed))
    by_data: dict[DataSet, list[JobResult]] = {}
    for result in ordered:
        by_data.setdefault(result.job.data, []).append(result)
    return [Findings(data, tuple(found)) for data, found in by_data.items()]


def auroc(result: JobResult) -> float | None:
    """Of all test patients."""
    return _pooled(result).auroc


def accuracy(result: JobResult) -> float | None:
    """Of all test patients."""
    return _pooled(result).accuracy


def worst_auroc(result: JobResult) -> float | None:
    """The lowest of a hospital with enough patients of each class."""
    return min((one.auroc for one in _of_sites(result) if one.auroc is not None), default=None)


def worst_accuracy(result: JobResult) -> float | None:
    """The lowest of any hospital."""
    return min((one.accuracy for one in _of_sites(result) if one.accuracy is not None), default=None)


def attack_auc(result: JobResult) -> float | None:
    """Of the loss threshold; 0.5 is guessing."""
    return result.membership.auc if result.membership else None


def attack_rate(result: JobResult) -> float | None:
    """Members found, of all, when one in ten of the others is taken for one."""
    return result.membership.true_positive_rate if result.membership else None


def spent(result: JobResult) -> float | None:
    """Epsilon by the records of the site that spent most."""
    return result.epsilon


def seconds(result: JobResult) -> float | None:
    """Training, the search for the noise included."""
    return result.seconds


def kilobytes_up(result: JobResult) -> float | None:
    """Of a site and round."""
    return None if result.bytes_up is None else result.bytes_up / 1000


def kilobytes_down(result: JobResult) -> float | None:
    """Of a site and round."""
    return None if result.bytes_down is None else result.bytes_down / 1000


ATTACKS: tuple[Measure, ...] = (attack_auc, attack_rate)
"""What depends on who is held out, rather than on who is tested."""


def _pooled(result: JobResult) -> Result:
    return next(one for one in result.results if one.site is None)


def _of_sites(result: JobResult) -> list[Result]:
    return [one for one in result.results if one.site is not None]
