"""Where an audit is shown: the terminal, and a folder with CSV, Markdown, pictures and a page of one file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape

from flexmoe_core.checkpoint import write_atomic
from server.report import page as run_page
from server.report.theme import Drawing, inline
from server.run_store import PUBLIC_MODE
from simulations.audits.plots import save
from simulations.audits.report import AuditFigure, AuditReport, AuditTable, Value, csv_rows, text_of
from simulations.audits.roc import Estimate

TEMPLATE = "page.html.j2"
GAP = "  "


def show_and_write(console: Console, out: Path, report: AuditReport) -> None:
    """Print the tables, write every file into ``out``, and say where to look."""
    for table in report.tables:
        for line in _lines_of(table):
            console.print(line, highlight=False, soft_wrap=True)
        if table.note:
            console.print(f"[dim]{escape(table.note)}[/dim]", highlight=False)
        console.print()
    write(out, report)
    console.print(f"Page      {out / report.page}", highlight=False)
    console.print(f"Summary   {out / report.summary}", highlight=False)


def write(out: Path, report: AuditReport) -> None:
    """CSV of every table, PNG and SVG of every figure, Markdown and page."""
    out.mkdir(parents=True, exist_ok=True)
    for table in report.tables:
        write_atomic(out / f"{table.name}.csv", _csv(table).encode(), PUBLIC_MODE)
    for figure in report.figures:
        for path in save(figure.drawing, out / figure.drawing.name):
            path.chmod(PUBLIC_MODE)
    write_atomic(out / report.summary, markdown_of(report).encode(), PUBLIC_MODE)
    write_atomic(out / report.page, page_of(report).encode(), PUBLIC_MODE)


def markdown_of(report: AuditReport) -> str:
    """The whole report, with links to its pictures."""
    parts = [f"# {report.title}", report.lead]
    parts += [f"- {one.title}: **{one.value}**{f' ({one.note})' if one.note else ''}" for one in report.findings]
    for table in report.tables:
        parts += [f"## {table.title}", _markdown_table(table), *([table.note] if table.note else [])]
    for figure in report.figures:
        parts += [f"## {figure.title}", f"![{figure.title}]({figure.drawing.name}.png)", figure.caption]
    parts += ["## What this does not show", "\n".join(f"- {limit}" for limit in report.limits)]
    return "\n\n".join(parts) + "\n"


def page_of(report: AuditReport) -> str:
    """The page as text, with figures and style inside."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(run_page.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [(figure, _inline(figure)) for figure in report.figures]
    return environment.get_template(TEMPLATE).render(report=report, figures=figures)


def _inline(figure: AuditFigure) -> Markup:
    def draw() -> Drawing:
        return figure.drawing

    return inline(draw)()


def _lines_of(table: AuditTable) -> Iterator[str]:
    """The last column of names beside the numbers, those before it above them: 80 columns are enough.

    Headings may be longer than the column below them, which the tables of rich do not allow.
    """
    yield f"[italic]{escape(table.title)}[/italic]"
    beside = slice(table.names - 1, None)
    columns, rows = table.columns[beside], [_terminal_cells(values[beside]) for values in table.rows]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    yield _line(columns, widths)
    yield "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (sum(widths) + len(GAP) * (len(widths) - 1))
    above = ""
    for values, row in zip(table.rows, rows, strict=True):
        names = ", ".join(map(text_of, values[: table.names - 1]))
        if names != above:
            yield f"[bold]{escape(names)}[/bold]"
            above = names
        yield _line(row, widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return escape(GAP.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))


def _terminal_cells(values: Sequence[Value]) -> list[str]:
    """Only the first estimate of a row has room for its interval."""
    estimates = [place for place, value in enumerate(values) if isinstance(value, Estimate)]
    return [
        text_of(value.value if isinstance(value, Estimate) and place > estimates[0] else value)
        for place, value in enumerate(values)
    ]


def _markdown_table(table: AuditTable) -> str:
    rows = table.texts()
    widths = [max(map(len, column)) for column in zip(table.columns, *rows, strict=True)]
    marks = [
        ":" + "-" * (width - 1) if is_text else "-" * (width - 1) + ":"
        for width, is_text in zip(widths, table.is_text, strict=True)
    ]
    lines = [
        [
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(row, widths, table.is_text, strict=True)
        ]
        for row in (table.columns, marks, *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _csv(table: AuditTable) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(csv_rows(table))
    return text.getvalue()
