"""Tables of results: numbers of three digits, aligned right, with the reason wherever there is no number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.report.comparison import POOLED, Comparison, Measures
from server.report.estimates import METRIC_TITLES, Estimate, Evaluation

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NOT_AVAILABLE = "n/a"
MOST_CLASSES_LISTED = 5


@dataclass(frozen=True)
class Cell:
    """A text, and smaller below it a note; ``is_muted`` says that the text stands for something absent."""

    text: str
    note: str = ""
    is_muted: bool = False


@dataclass(frozen=True)
class Column:
    """A title, the group of columns that it belongs to, and whether it holds numbers."""

    title: str
    is_number: bool = True
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first ``emphasized`` ones sum up the others, and ``name`` is for those who cannot see."""

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    emphasized: int = 0

    @property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """Titles above several columns, with their number; empty without any."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and column.group and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return tuple(spans) if any(title for title, _ in spans) else ()


def number(value: float | None) -> str:
    """Three digits after the point, a true minus sign."""
    return NOT_AVAILABLE if value is None else f"{value:.3f}".replace("-", MINUS)


def interval(ends: tuple[float, float]) -> str:
    """``0.845 to 0.927``, with a dash unless an end is negative."""
    low, high = ends
    return f"{number(low)} to {number(high)}" if low < 0 else f"{number(low)}{DASH}{number(high)}"


def results_table(
    name: str, first: str, rows: Mapping[str, Evaluation], classes: Sequence[str], emphasized: int = 0
) -> Table:
    """One row per hospital or combination, with the interval below the estimate."""
    two = len(classes) == 2
    by_class = two or len(classes) <= MOST_CLASSES_LISTED
    counts = (
        f"\N{LEFT SINGLE QUOTATION MARK}{classes[1]}\N{RIGHT SINGLE QUOTATION MARK}" if two else " / ".join(classes)
    )
    columns = [Column(first, is_number=False), Column("Patients"), *([Column(counts)] if by_class else [])]
    columns += [Column(title) for title in METRIC_TITLES.values()]
    return Table(
        name,
        tuple(columns),
        tuple(_result_row(label, one, two, by_class) for label, one in rows.items()),
        emphasized,
    )


def estimate_cell(estimate: Estimate) -> Cell:
    """The number with its interval, or n/a with the reason."""
    if estimate.value is None:
        return Cell(NOT_AVAILABLE, estimate.reason, is_muted=True)
    return Cell(number(estimate.value), interval(estimate.interval) if estimate.interval else "")


def comparison_table(comparison: Comparison) -> Table:
    """Accuracy and AUROC of every method, per hospital and pooled."""
    columns = [Column("Hospital", is_number=False), Column("Patients"), Column("Positive")]
    for method in comparison.methods:
        columns += [Column("AUROC", group=method), Column("Accuracy", group=method)]
    ordered = sorted(comparison.rows, key=lambda row: row.site != POOLED)
    rows = []
    for row in ordered:
        cells = [Cell("All hospitals" if row.site == POOLED else row.site), Cell(f"{row.n:,}")]
        cells.append(Cell(DASH, is_muted=True) if row.n_positive is None else Cell(f"{row.n_positive:,}"))
        for method in comparison.methods:
            measures = row.measures.get(method)
            cells += [_measure(measures, measures.auroc if measures else None)]
            cells += [_measure(measures, measures.accuracy if measures else None)]
        rows.append(tuple(cells))
    pooled = sum(row.site == POOLED for row in comparison.rows)
    return Table("Test results by method", tuple(columns), tuple(rows), pooled)


def differences_table(comparison: Comparison) -> Table:
    """Paired differences with their intervals."""
    columns = (
        Column("Hospital", is_number=False),
        Column("Difference", is_number=False),
        Column("Metric", is_number=False),
        Column("Value"),
        Column("95% interval"),
    )
    rows = tuple(
        (
            Cell("All hospitals" if one.site == POOLED else one.site),
            Cell(f"{one.method} {MINUS} {one.baseline}"),
            Cell(METRIC_TITLES.get(one.metric, one.metric)),
            Cell(number(one.difference)),
            Cell(interval((one.low, one.high))),
        )
        for one in comparison.differences
    )
    return Table("Differences on the same patients", columns, rows)


def _result_row(label: str, evaluation: Evaluation, two: bool, by_class: bool) -> tuple[Cell, ...]:
    counts = evaluation.class_counts
    by_class_cell = Cell(f"{counts[1]:,}" if two else " / ".join(f"{count:,}" for count in counts))
    estimates = evaluation.estimates
    if not evaluation.n:
        reason = estimates["accuracy"].reason
        blank = Cell(DASH, is_muted=True)
        rest = [Cell(NOT_AVAILABLE, is_muted=True) for _ in METRIC_TITLES]
        return (Cell(label, reason), blank, *([blank] if by_class else []), *rest)
    cells = [estimate_cell(estimates[metric]) for metric in METRIC_TITLES]
    return (Cell(label), Cell(f"{evaluation.n:,}"), *([by_class_cell] if by_class else []), *cells)


def _measure(measures: Measures | None, value: float | None) -> Cell:
    if measures is None:
        return Cell(DASH, is_muted=True)
    return Cell(number(value), is_muted=value is None)
