"""A hospital's CSV or Parquet file as columns of text, each row with the line that it stands on.

Cells are text until a column's definition says what they mean; the empty text is a missing cell. Problems show
the file, the line and the column, never a cell: a header may be a patient, where a file has none.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import nearest

SHOWN_LINES = 5
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
LARGEST_MEASUREMENT = 1e12  # beyond it a number is a mistake
CSV_REMEDY = "Export the file again as comma-separated UTF-8 text."


@dataclass(frozen=True)
class Table:
    """Rows of one file. ``cells[name]`` has one text per row; columns that were not asked for are absent.

    ``header`` names all columns of the file, ``lines`` gives each row's line (CSV) or number (Parquet), and
    ``unit`` says which of the two.
    """

    file: str
    unit: str
    header: tuple[str, ...]
    lines: tuple[int, ...]
    cells: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.lines)

    def absent(self, column: str, wanted_by: str) -> Problem:
        """The problem that the file lacks a column."""
        similar = nearest(column, [name for name in self.header if name])
        if similar is not None:
            hint = f"Column {self.header.index(similar) + 1} of the file has a similar name"
        elif len(self.header) == 1 and re.search(r"[;\t]", self.header[0]):
            hint = "Separate the columns by commas"
        else:
            hint = "Add the column to the file"
        return Problem(self.file, "", f"has no column '{column}'", f"{hint}, or correct {wanted_by}.")


class LineProblems:
    """Problems of single lines, gathered into one ``Problem`` per column (or other named part) and sort."""

    def __init__(self, file: str, unit: str, part: str = "column") -> None:
        self._file, self._unit, self._part = file, unit, part
        self._lines: dict[tuple[str, str, str], list[int]] = {}

    def add(self, line: int, column: str, what: str, remedy: str) -> None:
        """Note one line; ``column`` may be empty."""
        self._lines.setdefault((column, what, remedy), []).append(line)

    def problems(self) -> list[Problem]:
        """Each sort once, with its first lines and the number of the others."""
        return [
            Problem(
                self._file, f"{self._part} {column}, {self._name(lines)}" if column else self._name(lines), *texts
            )
            for (column, *texts), lines in self._lines.items()
        ]

    def _name(self, lines: list[int]) -> str:
        lines = sorted(lines)
        shown = ", ".join(map(str, lines[:SHOWN_LINES]))
        plural = "s" if len(lines) > 1 else ""
        others = len(lines) - SHOWN_LINES
        more = f" and {others} more {self._unit}{'s' if others > 1 else ''}" if others > 0 else ""
        return f"{self._unit}{plural} {shown}{more}"


def canonical(cell: str) -> str:
    """One text for all spellings of a number: '1', '1.0' and '1e0' are the same cell."""
    return repr(float(cell)) if NUMBER.fullmatch(cell) or NOT_FINITE.fullmatch(cell) else cell


def read_table(path: Path, file: str, columns: Collection[str] | None, rows: Collection[int] | None = None) -> Table:
    """The named columns of a file (None: all), of the given rows (all by default); no other cell is kept.

    ``file`` is the path as the user knows it. Raises InputError when the file cannot be read as a table; a column
    that the file lacks is merely absent from ``cells``.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path, file, columns, rows)
        if path.suffix.lower() == ".csv":
            return _read_csv(path.read_bytes(), file, columns, rows)
    except OSError as error:
        reason = error.strerror or "it is truncated or not what its name says"
        problem = Problem(file, "", f"cannot be read: {reason}", "Correct the file or its permissions.")
        raise InputError([problem]) from None
    problem = Problem(file, "", "is neither .csv nor .parquet", "Export the table as one of these.")
    raise InputError([problem])


def _read_csv(data: bytes, file: str, columns: Collection[str] | None, rows: Collection[int] | None) -> Table:
    records = _csv_records(_decode(data, file), file)
    header = _checked_header(next(records, (0, []))[1], file)
    places = {name: header.index(name) for name in (header if columns is None else columns) if name in header}
    kept = set(rows) if rows is not None else None
    lines: list[int] = []
    cells: dict[str, list[str]] = {name: [] for name in places}
    ragged = LineProblems(file, "line")
    for row, (line, record) in enumerate(records):
        if len(record) != len(header):
            what = "has more or fewer cells than the header"
            ragged.add(line, "", what, "Quote cells that hold commas, or export the file again.")
        elif kept is None or row in kept:
            lines.append(line)
            for name, place in places.items():
                cells[name].append(record[place].strip())
    if found := ragged.problems():
        raise InputError(found)
    return Table(file, "line", header, tuple(lines), cells)


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError([Problem(file, f"line {line}", "is not UTF-8 text", CSV_REMEDY)]) from None


def _csv_records(text: str, file: str) -> Iterator[tuple[int, list[str]]]:
    """Every record that is not blank, with the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for record in reader:
            if any(cell.strip() for cell in record):
                yield line, record
            line = reader.line_num + 1
    except csv.Error:
        what = "has a quote that is not closed, or a cell that is too long"
        raise InputError([Problem(file, f"line {line}", what, CSV_REMEDY)]) from None


def _checked_header(names: Sequence[str], file: str) -> tuple[str, ...]:
    header = tuple(name.strip() for name in names)
    if not header:
        raise InputError([Problem(file, "", "is empty", "Export the table again, with a header.")])
    first: dict[str, int] = {}
    problems = []
    for place, name in enumerate(header, start=1):
        if name and first.setdefault(name, place) != place:
            what = f"columns {first[name]} and {place} have the same name"
            problems.append(Problem(file, "header", what, "Rename or remove one."))
    if problems:
        raise InputError(problems)
    return header


def _read_parquet(path: Path, file: str, columns: Collection[str] | None, rows: Collection[int] | None) -> Table:
    try:
        with pq.ParquetFile(path) as source:
            header = _checked_header(source.schema_arrow.names, file)
            wanted = [name for name in source.schema_arrow.names if columns is None or name.strip() in columns]
            count = source.metadata.num_rows
            table = source.read(columns=wanted)
    except pa.ArrowException:
        what = "cannot be read as Parquet: it is truncated or not what its name says"
        raise InputError([Problem(file, "", what, "Export the table again.")]) from None
    kept = range(count) if rows is None else sorted(rows)
    cells: dict[str, Sequence[str]] = {}
    problems = []
    for name in wanted:
        column = table.column(name)
        try:
            cells[name.strip()] = [_text(value) for value in column.take(pa.array(kept, pa.int64())).to_pylist()]
        except (TypeError, ValueError, OverflowError, pa.ArrowException):
            what = "holds neither numbers nor text"
            problems.append(Problem(file, f"column {name.strip()}", what, "Export it as numbers or text."))
    if problems:
        raise InputError(problems)
    return Table(file, "row", header, tuple(row + 1 for row in kept), cells)


def _text(value: object) -> str:
    """A Parquet cell as a CSV would spell it. Raises TypeError for lists, structs and bytes."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return str(int(value)) if value.is_integer() else repr(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case str() | int() | decimal.Decimal():
            return str(value).strip()
    raise TypeError("a cell is neither a number nor text")
