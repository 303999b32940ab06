"""What the variants benchmark says over its seeds, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from simulations.benchmark_data import DataSet
from simulations.comparison import Result
from simulations.seed_tables import METRICS_TITLES, TITLES, markdown, mean_difference, mean_sd, metrics_row
from simulations.variant_benchmark import JobResult
from simulations.variants import FLEX_MOE, title_of

COMPARED: tuple[Literal["accuracy", "auroc", "brier"], ...] = ("accuracy", "auroc", "brier")
INTERVALS = (
    "Mean over seeds with its 95% interval (Student's t, paired: both have the same patients, split and seed). "
    "Where every seed splits the same patients anew, it is corrected for the overlap (Nadeau and Bengio 2003)."
)

OfSeed = Mapping[int, tuple[Result, ...]]


def variants_markdown(results: Sequence[JobResult]) -> str:
    """All tables, of at least one result; a method that lacks seeds has the mean of those that it has."""
    data = _distinct(result.job.data for result in results)
    methods = list(dict.fromkeys(result.job.method for result in results))
    seeds = sorted({result.job.seed for result in results})
    tables = [{method: _of_seed(results, one, method) for method in methods} for one in data]
    parts = [
        "# Variants of the federation",
        f"Seeds {', '.join(map(str, seeds))}. Mean (standard deviation over seeds). AUROC is n/a where a class has "
        "fewer than 10 test patients; of more than two classes it is the mean of each against the rest.",
    ]
    if len(data) > 1:
        parts += [part for metric in COMPARED for part in _across(data, tables, metric)]
    for one, table in zip(data, tables, strict=True):
        parts += [
            f"## {one.title}",
            _metrics(table),
            f"{title_of(FLEX_MOE)} minus each. {INTERVALS}",
            _minus(one, table),
        ]
    return "\n\n".join(parts) + "\n"


def _distinct(data: Iterable[DataSet]) -> list[DataSet]:
    return list({one.model_dump_json(): one for one in data}.values())


def _of_seed(results: Iterable[JobResult], data: DataSet, method: str) -> OfSeed:
    found = {one.job.seed: one.results for one in results if one.job.data == data and one.job.method == method}
    return dict(sorted(found.items()))


def _metrics(table: Mapping[str, OfSeed]) -> str:
    """All patients' metrics, and the lowest accuracy of any hospital."""
    rows = [
        [
            *metrics_row(title_of(method), [_pooled(results) for results in of_seed.values()]),
            mean_sd(_worst_accuracy(results) for results in of_seed.values()),
        ]
        for method, of_seed in table.items()
        if of_seed
    ]
    return markdown([*METRICS_TITLES, "Worst accuracy"], rows)


def _minus(data: DataSet, table: Mapping[str, OfSeed]) -> str:
    rows = [
        [title_of(method), *(_difference(data, table, method, metric) for metric in COMPARED)]
        for method, of_seed in table.items()
        if method != FLEX_MOE and of_seed
    ]
    return markdown(["Minus", *(TITLES[metric] for metric in COMPARED)], rows)


def _across(data: Sequence[DataSet], tables: Sequence[Mapping[str, OfSeed]], metric: str) -> list[str]:
    """One metric with a column per data set: the values, and what Flex-MoE is above each method."""
    methods = list(dict.fromkeys(method for table in tables for method in table))
    titles = [one.title for one in data]
    values = [
        [title_of(method), *(mean_sd(_values(table[method], metric).values()) for table in tables)]
        for method in methods
    ]
    minus = [
        [
            title_of(method),
            *(_difference(one, table, method, metric) for one, table in zip(data, tables, strict=True)),
        ]
        for method in methods
        if method != FLEX_MOE
    ]
    return [
        f"## {TITLES[metric]} by data set",
        markdown(["Method", *titles], values),
        markdown(["Minus", *titles], minus),
    ]


def _difference(data: DataSet, table: Mapping[str, OfSeed], method: str, metric: str) -> str:
    first, other = _values(table.get(FLEX_MOE, {}), metric), _values(table[method], metric)
    pairs = [(first[seed], other[seed]) for seed in first if seed in other]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return mean_difference(differences, len(first), data.redrawn)


def _values(of_seed: OfSeed, metric: str) -> dict[int, float | None]:
    return {seed: getattr(_pooled(results), metric) for seed, results in of_seed.items()}


def _pooled(results: tuple[Result, ...]) -> Result:
    return next(one for one in results if one.site is None)


def _worst_accuracy(results: tuple[Result, ...]) -> float | None:
    of_site = [one.accuracy for one in results if one.site is not None and one.accuracy is not None]
    return min(of_site, default=None)
