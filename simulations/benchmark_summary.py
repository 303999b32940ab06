"""What a benchmark says over its seeds, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.benchmark import SeedResult
from simulations.comparison import METRICS, Metric
from simulations.datasets.uci_heart import TEST_SHARE
from simulations.seed_tables import METRICS_TITLES, TITLES, markdown, mean_difference, mean_sd, metrics_row
from simulations.tables import ALL, NOT_AVAILABLE, chosen, signed_interval

OVERLAP = {
    "flamby": "The test patients are the same 254 for every seed: these intervals tell how much training varies, not "
    "how much other patients would. For that see the intervals over patients below.",
    "all": "The splits draw from the same 920 patients and overlap; the intervals are corrected for that (Nadeau and "
    "Bengio 2003), which makes them 2.5 times as wide for ten splits.",
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
    rows = [
        metrics_row(method, [result.table.result(site, method) for result in results]) for method in first.methods
    ]
    return markdown(METRICS_TITLES, rows)


def _differences(results: Sequence[SeedResult]) -> str:
    first = results[0].table
    rows = []
    for site in first.sites:
        for method in first.methods[1:]:
            cells = [_over_seeds(results, site, method, metric) for metric in METRICS]
            if any(cell != NOT_AVAILABLE for cell in cells):
                rows.append([site or ALL, method, *cells])
    return markdown(["Hospital", "Minus", *(TITLES[metric] for metric in METRICS)], rows)


def _over_seeds(results: Sequence[SeedResult], site: str | None, method: str, metric: Metric) -> str:
    found = [result.table.difference(site, method, metric) for result in results]
    redrawn = TEST_SHARE if results[0].terms.protocol == "all" else 0.0
    return mean_difference([one.difference for one in found if one is not None], len(results), redrawn)


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
    return markdown(["Seed", "Minus", *(TITLES[metric] for metric in METRICS)], rows)


def _worst(results: Sequence[SeedResult]) -> str:
    rows = [
        [method, *(mean_sd(_worst_values(results, method, metric)) for metric in METRICS)]
        for method in results[0].table.methods
    ]
    return markdown(["Method", *(TITLES[metric] for metric in METRICS)], rows)


def _worst_values(results: Sequence[SeedResult], method: str, metric: Metric) -> list[float | None]:
    """The lowest defined value of each seed."""
    values = []
    for result in results:
        of_site = [getattr(result.table.result(site, method), metric) for site in result.table.sites if site]
        values.append(min((value for value in of_site if value is not None), default=None))
    return values
