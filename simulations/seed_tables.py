"""Markdown tables of means over seeds, with standard deviations and intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from simulations.comparison import Result
from simulations.seed_intervals import SeedInterval, seed_interval
from simulations.tables import NOT_AVAILABLE, interval_text, number

TITLES = {"accuracy": "Accuracy", "auroc": "AUROC", "brier": "Brier", "ece": "ECE"}
METRICS_TITLES = ("Method", "n", "Positive", *TITLES.values())
TEXT_TITLES = ("Method", "Hospital", "Minus")


def metrics_row(method: str, of_seed: Sequence[Result]) -> list[str]:
    """A method's patients and metrics, mean and standard deviation over seeds, under ``METRICS_TITLES``."""
    counts = [_range(of_seed, lambda one: one.n), _range(of_seed, lambda one: one.n_positive)]
    return [method, *counts, *(mean_sd(getattr(one, metric) for one in of_seed) for metric in TITLES)]


def mean_sd(values: Iterable[float | None]) -> str:
    """``0.902 (0.004)`` of the values that are defined; n/a where none is."""
    defined = [value for value in values if value is not None]
    return _with_sd(seed_interval(defined)) if defined else NOT_AVAILABLE


def mean_difference(values: Sequence[float], seeds: int, redrawn: float) -> str:
    """The mean with its 95% ``seed_interval``; says so where it is over fewer than ``seeds``."""
    if not values:
        return NOT_AVAILABLE
    interval = seed_interval(values, redrawn=redrawn)
    missing = f" ({len(values)} seeds)" if len(values) < seeds else ""
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.3f}{missing}"
    return interval_text(interval.mean, interval.low, interval.high) + missing


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that can also be read as plain text: names stand left, numbers right."""
    is_text = [title in TEXT_TITLES for title in titles]
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


def _with_sd(interval: SeedInterval) -> str:
    return number(interval.mean) if interval.sd is None else f"{number(interval.mean)} ({number(interval.sd)})"


def _range(results: Iterable[Result], count: Callable[[Result], int | None]) -> str:
    counts = sorted({value for one in results if (value := count(one)) is not None})
    if not counts:
        return ""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
