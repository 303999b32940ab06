"""Comparisons on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from simulations.comparison import METRICS, ComparisonTable, Difference, Result
from simulations.hidden_study import HiddenStudy

ALL = "all hospitals"
NOT_AVAILABLE = "n/a"


def print_comparison(console: Console, comparison: ComparisonTable) -> None:
    """Two tables: every method at every hospital, and the paired differences. Fits 100 columns."""
    console.print(results_table(comparison))
    if comparison.differences:
        console.print(differences_table(comparison))
    if comparison.chosen:
        console.print(f"Local only is, chosen at each hospital: {chosen(comparison)}.", highlight=False)


def results_table(comparison: ComparisonTable) -> Table:
    """Test patients and metrics, hospital by hospital."""
    table = Table(title="Test patients", title_justify="left")
    for title in ("hospital", "method"):
        table.add_column(title, no_wrap=True)
    for title in ("n", "positive", "accuracy", "AUROC", "Brier", "ECE"):
        table.add_column(title, justify="right", no_wrap=True)
    for site in comparison.sites:
        for place, method in enumerate(comparison.methods):
            result = comparison.result(site, method)
            whose = (site or ALL, method, *_patients(result)) if place == 0 else ("", method, "", "")
            measures = (result.accuracy, result.auroc, result.brier, result.ece)
            table.add_row(*whose, *map(number, measures), style="bold" if place == 0 else None)
        table.add_section()
    return table


def differences_table(comparison: ComparisonTable) -> Table:
    """The first method minus each other one, with 95% intervals."""
    title = f"{comparison.methods[0]} minus ... (95% interval over the same patients)"
    table = Table(title=title, title_justify="left")
    for heading in ("hospital", "minus"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "AUROC"):
        table.add_column(heading, justify="right", no_wrap=True)
    for site in comparison.sites:
        rows = [
            (method, [comparison.difference(site, method, metric) for metric in METRICS])
            for method in comparison.methods[1:]
        ]
        shown = [(method, found) for method, found in rows if any(found)]
        for place, (method, found) in enumerate(shown):
            table.add_row("" if place else site or ALL, method, *map(signed_interval, found))
        table.add_section()
    return table


def hidden_table(study: HiddenStudy) -> Table:
    """The learned bank against zero-fill, modalities hidden in every way."""
    table = Table(title="Modalities hidden from test patients in every way", title_justify="left")
    for title in ("combinations", "measure"):
        table.add_column(title, no_wrap=True)
    for title in ("learned bank", "zero-fill", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in study.measures:
        table.add_row(
            f"{one.count} {one.combinations}",
            one.measure,
            number(one.bank),
            number(one.zero_fill),
            interval_text(one.difference, one.low, one.high),
        )
    return table


def number(value: float | None) -> str:
    """Three digits, or n/a."""
    return NOT_AVAILABLE if value is None else f"{value:.3f}"


def signed_interval(found: Difference | None) -> str:
    """``+0.012 [-0.003, +0.030]``, or n/a."""
    if found is None:
        return NOT_AVAILABLE
    return interval_text(found.difference, found.low, found.high)


def interval_text(difference: float, low: float, high: float) -> str:
    """``+0.012 [-0.003, +0.030]``."""
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def chosen(comparison: ComparisonTable) -> str:
    """Which hospitals chose what for themselves."""
    choices = dict.fromkeys(comparison.chosen.values())
    sites = {choice: [site for site, own in comparison.chosen.items() if own == choice] for choice in choices}
    return "; ".join(f"{choice} ({', '.join(names)})" for choice, names in sites.items())


def _patients(result: Result) -> tuple[str, str]:
    return str(result.n), "" if result.n_positive is None else str(result.n_positive)
