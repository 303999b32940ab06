"""What a benchmark says over its seeds, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from simulations.benchmark import SeedResult
from simulations.comparison import METRICS, Metric, Result
from simulations.seed_intervals import SeedInterval, seed_interval
from simulations.tables import ALL, NOT_AVAILABLE, chosen, interval_text, number, signed_interval

TITLES = {"accuracy": "Accuracy", "auroc": "AUROC", "brier": "Brier", "ece": "ECE"}
OVERLAP = {
    "flamby": "The test patients are the same 254 for every seed: these intervals tell how much training varies, not "
    "how much other patients would. For that see the intervals over patients below.",
    "all": "The splits draw from the same 920 patients and overlap, so the seeds are not independent and these "
    "intervals are somewhat too narrow.",
}


def summary_markdown(results: Sequence[SeedResult]) -> str:
    """All tables, of at least one seed."""
    ordered = sorted(results, key=lambda result: result.seed)
    terms = ordered[0].terms
    seeds = ", ".join(str(result.seed) for result in ordered)
    parts = [
        f"# {terms.dataset}, protocol {terms.protocol}",
        f"Seeds {seeds}; validation share {terms.validation:g}. Mean (standard deviation over seeds). "
        "AUROC is n/a where a class has fewer than 10 test patients.",
        "## All hospitals",
        _metrics_of(ordered, None),
        "## Differences over seeds",
        f"{ordered[0].table.methods[0]} minus each other method on the same test patients: mean over seeds, with "
        f"its 95% interval (Student's t). {OVERLAP[terms.protocol]}",
        _differences(ordered),
        "## Differences over patients",
        "All hospitals, each seed by itself: 95% intervals by resampling the test patients within their hospitals.",
        _bootstrap(ordered),
        "## Worst hospital",
        "The lowest value of any hospital for which it is defined, seed by seed.",
        _worst(ordered),
        *(part for site in ordered[0].table.sites if site for part in (f"## {site}", _metrics_of(ordered, site))),
        "## What hospitals chose for themselves",
        "\n".join(f"- seed {result.seed}: {chosen(result.table)}" for result in ordered),
        "## Time",
        "\n".join(
            f"- seed {result.seed}: federation {result.training_seconds:.0f} s, comparison "
            f"{result.comparison_seconds:.0f} s"
            for result in ordered
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _metrics_of(results: Sequence[SeedResult], site: str | None) -> str:
    first = results[0].table
    rows = []
    for method in first.methods:
        of_seed = [result.table.result(site, method) for result in results]
        measures = [_mean_sd(getattr(one, metric) for one in of_seed) for metric in TITLES]
        rows.append([method, _range(of_seed, lambda one: one.n), _range(of_seed, lambda one: one.n_positive)])
        rows[-1] += measures
    return _markdown(["Method", "n", "Positive", *TITLES.values()], rows)


def _differences(results: Sequence[SeedResult]) -> str:
    first = results[0].table
    rows = []
    for site in first.sites:
        for method in first.methods[1:]:
            cells = [_difference_over_seeds(results, site, method, metric) for metric in METRICS]
            if any(cell != NOT_AVAILABLE for cell in cells):
                rows.append([site or ALL, method, *cells])
    return _markdown(["Hospital", "Minus", *(TITLES[metric] for metric in METRICS)], rows)


def _difference_over_seeds(results: Sequence[SeedResult], site: str | None, method: str, metric: Metric) -> str:
    found = [result.table.difference(site, method, metric) for result in results]
    values = [one.difference for one in found if one is not None]
    if not values:
        return NOT_AVAILABLE
    interval = seed_interval(values)
    missing = f" ({len(values)} seeds)" if len(values) < len(results) else ""
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.3f}{missing}"
    return interval_text(interval.mean, interval.low, interval.high) + missing


def _bootstrap(results: Sequence[SeedResult]) -> str:
    rows = [
        [
            str(result.seed),
            method,
            *(signed_interval(result.table.difference(None, method, metric)) for metric in METRICS),
        ]
        for result in results
        for method in result.table.methods[1:]
    ]
    return _markdown(["Seed", "Minus", *(TITLES[metric] for metric in METRICS)], rows)


def _worst(results: Sequence[SeedResult]) -> str:
    rows = [
        [method, *(_mean_sd(_worst_values(results, method, metric)) for metric in METRICS)]
        for method in results[0].table.methods
    ]
    return _markdown(["Method", *(TITLES[metric] for metric in METRICS)], rows)


def _worst_values(results: Sequence[SeedResult], method: str, metric: Metric) -> list[float | None]:
    """The lowest defined value of each seed."""
    values = []
    for result in results:
        of_site = [getattr(result.table.result(site, method), metric) for site in result.table.sites if site]
        values.append(min((value for value in of_site if value is not None), default=None))
    return values


def _mean_sd(values: Iterable[float | None]) -> str:
    defined = [value for value in values if value is not None]
    return _with_sd(seed_interval(defined)) if defined else NOT_AVAILABLE


def _with_sd(interval: SeedInterval) -> str:
    return number(interval.mean) if interval.sd is None else f"{number(interval.mean)} ({number(interval.sd)})"


def _range(results: Iterable[Result], count: Callable[[Result], int | None]) -> str:
    counts = sorted({value for one in results if (value := count(one)) is not None})
    if not counts:
        return ""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that can also be read as plain text: names stand left, numbers right."""
    is_text = [title in ("Method", "Hospital", "Minus") for title in titles]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    marks = [
        ":" + "-" * (width - 1) if left else "-" * (width - 1) + ":"
        for left, width in zip(is_text, widths, strict=True)
    ]
    lines = [
        [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, left, width in zip(row, is_text, widths, strict=True)
        ]
        for row in (titles, marks, *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
