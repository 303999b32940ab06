"""Comparisons on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from simulations.comparison import METRICS, ComparisonTable, Difference
from simulations.hidden_study import HiddenStudy

ALL = "all hospitals"
NOT_AVAILABLE = "n/a"


def print_comparison(console: Console, comparison: ComparisonTable) -> None:
    """Two tables: every method at every hospital, and the paired differences. 80 columns are enough."""
    console.print(results_table(comparison))
    if comparison.differences:
        console.print()
        console.print(differences_table(comparison))
    if comparison.chosen:
        console.print(f"Chosen for local only: {chosen(comparison)}.", highlight=False)


def results_table(comparison: ComparisonTable) -> Table:
    """Metrics of the test patients, hospital by hospital."""
    table = _table("Test patients", "", "accuracy", "AUROC", "Brier", "ECE")
    for site in comparison.sites:
        first = comparison.result(site, comparison.methods[0])
        positive = "" if first.n_positive is None else f", {first.n_positive} positive"
        table.add_row(f"[bold]{site or ALL}[/bold] ({first.n}{positive})")
        for method in comparison.methods:
            result = comparison.result(site, method)
            measures = (result.accuracy, result.auroc, result.brier, result.ece)
            table.add_row(f"  {method}", *map(number, measures))
        table.add_section()
    return table


def differences_table(comparison: ComparisonTable) -> Table:
    """The first method minus each other one, with 95% intervals."""
    table = _table(f"{comparison.methods[0]} minus (95% interval over the same patients)", "", "accuracy", "AUROC")
    for site in comparison.sites:
        found = {
            method: [comparison.difference(site, method, metric) for metric in METRICS]
            for method in comparison.methods[1:]
        }
        if not any(any(differences) for differences in found.values()):
            continue
        table.add_row(f"[bold]{site or ALL}[/bold]")
        for method, differences in found.items():
            table.add_row(f"  {method}", *map(signed_interval, differences))
        table.add_section()
    return table


def hidden_table(study: HiddenStudy) -> Table:
    """The learned bank against zero-fill, modalities hidden in every way."""
    table = _table("Modalities hidden in every way", "combinations", "bank", "zero-fill", "difference")
    for one in study.measures:
        difference = interval_text(one.difference, one.low, one.high)
        name = f"{one.count} {one.combinations}, {one.measure}"
        table.add_row(name, number(one.bank), number(one.zero_fill), difference)
    return table


def _table(title: str, first: str, *numbers: str) -> Table:
    """Columns of numbers stand right; nothing is wrapped, and 80 columns are enough."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
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
