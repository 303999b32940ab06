"""What an audit says: tables, figures and words, for the terminal, for files and for a page alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from server.report.theme import Drawing
from simulations.audits.roc import Estimate

NOT_AVAILABLE = "n/a"

Value = str | int | float | Estimate | None
"""None and an estimate without a value print n/a."""


@dataclass(frozen=True)
class AuditTable:
    """Rows under ``columns``, of which the first ``names`` hold words; ``name`` is the stem of its CSV file."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    names: int = 1
    note: str = ""

    @property
    def is_text(self) -> tuple[bool, ...]:
        """Whether each column holds words."""
        return tuple(place < self.names for place in range(len(self.columns)))

    def texts(self) -> list[list[str]]:
        """Every cell as it is read."""
        return [[text_of(value) for value in row] for row in self.rows]


@dataclass(frozen=True)
class AuditFigure:
    """A drawing, which is drawn anew for every file, and what its caption says."""

    title: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True)
class Finding:
    """A number that sums up the audit, and what it is."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class AuditReport:
    """``lead`` says what was done, ``limits`` what cannot be concluded from it.

    ``kind`` says above the title what it is; ``stem`` names page and summary.
    """

    title: str
    lead: str
    findings: tuple[Finding, ...]
    tables: tuple[AuditTable, ...]
    figures: tuple[AuditFigure, ...]
    limits: tuple[str, ...]
    kind: str = "privacy audit"
    stem: str = "audit"

    @property
    def page(self) -> str:
        """The file name of the page."""
        return f"{self.stem}.html"

    @property
    def summary(self) -> str:
        """The file name of the Markdown."""
        return f"{self.stem}.md"


def text_of(value: Value) -> str:
    """``0.612 [0.580, 0.645]`` of an estimate, three digits of a number, n/a of nothing."""
    match value:
        case None | Estimate(value=None):
            return NOT_AVAILABLE
        case Estimate(value=float() as middle, low=float() as low, high=float() as high):
            return f"{middle:.3f} [{low:.3f}, {high:.3f}]"
        case Estimate(value=middle):
            return f"{middle:.3f}"
        case float():
            return f"{value:.3f}"
        case int():
            return f"{value:,}"
        case _:
            return value


def csv_rows(table: AuditTable) -> Iterator[list[str]]:
    """Titles and rows with every digit; an estimate fills three cells, what is not available none."""
    wide = [any(isinstance(row[place], Estimate) for row in table.rows) for place in range(len(table.columns))]
    titles = [
        [title, f"{title} low", f"{title} high"] if w else [title]
        for title, w in zip(table.columns, wide, strict=True)
    ]
    yield [title for group in titles for title in group]
    for row in table.rows:
        yield [cell for value, w in zip(row, wide, strict=True) for cell in _csv_cells(value, w)]


def _csv_cells(value: Value, wide: bool) -> list[str]:
    if isinstance(value, Estimate):
        return [_exact(one) for one in (value.value, value.low, value.high)]
    return [_exact(value), *(["", ""] if wide else [])]


def _exact(value: str | int | float | None) -> str:
    return "" if value is None else str(value)
