"""Columns of a site's table: where each of a modality's stands, what its cells mean, and their features.

Shapes: N rows of the file, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from client.manifest import MANIFEST_FILE
from client.modality_entry import Reading
from client.tables import LARGEST_MEASUREMENT, NOT_FINITE, NUMBER, LineProblems, Table, canonical, read_table
from client.tabular_entry import ColumnMap, LocalCategoricalColumn, LocalNumericColumn, TableEntry, known_columns
from flexmoe_core.errors import Problem
from flexmoe_core.features import MISSING_CODE, encode, fit_numeric
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.modalities.tabular import CategoricalColumn, Column, ColumnsModality, NumericColumn
from flexmoe_core.validation import Finding

TOO_LARGE = Finding("is too large to be a measurement", "Correct it, or declare the spelling as missing.")

Definition = NumericColumn | CategoricalColumn | LocalNumericColumn


@dataclass(frozen=True)
class ColumnSource:
    """A column's definition and where its values stand: local name, spellings of missing and of categories.

    ``known`` is a local column with the scale that an encoder was trained with.
    """

    definition: Definition
    local_name: str
    missing: frozenset[str]
    codes: Mapping[str, int]
    known: NumericColumn | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether its scale comes from the site's training patients."""
        return isinstance(self.definition, LocalNumericColumn)

    def is_missing(self, cell: str) -> bool:
        """Whether the cell holds no value."""
        return not cell or canonical(cell) in self.missing

    def read(self, cell: str) -> float | Finding:
        """The number or the category's code in a cell, NaN or -1 when it is missing; or what is wrong with it."""
        if isinstance(self.definition, CategoricalColumn):
            return self._code(cell, self.definition)
        return math.nan if self.is_missing(cell) else read_number(cell, self.definition)

    def _code(self, cell: str, column: CategoricalColumn) -> int | Finding:
        if self.is_missing(cell):
            return MISSING_CODE
        code = self.codes.get(cell, self.codes.get(canonical(cell)))
        if code is None:
            remedy = f"Write one of {', '.join(column.categories)}, or add its spelling to values in site.toml."
            return Finding("is in no category", remedy)
        return code


def column_sources(
    entry: TableEntry, modality: ColumnsModality, known: AnyPreprocessing | None
) -> tuple[ColumnSource, ...]:
    """Where each column of a modality stands; a column of the study, or of a known local encoder, that is not mapped
    keeps its name."""
    if modality.encoder == "local":
        if known is not None:
            return _known_sources(entry, known_columns(known))
        return tuple(_source(entry, _definition(local), local) for local in entry.definitions)
    return tuple(_source(entry, column, entry.columns.get(column.name, ColumnMap())) for column in modality.columns)


def reserved_problems(name: str, columns: Iterable[str], path: Path, reading: Reading) -> list[Problem]:
    """Whether the modality of that name makes inputs of ids, labels or splits."""
    reserved = reading.reserved_columns if reading.is_patients_file(path) else (reading.section.id,)
    used = [column for column in columns if column in reserved]
    if not used:
        return []
    what = f"uses the column '{used[0]}', which holds the id, label or split of the patients"
    place, manifest = f"modality.{name}", reading.file(MANIFEST_FILE)
    return [Problem(manifest, place, what, "Leave it out: it is no measurement.")]


def read_columns(
    path: Path, file: str, sources: Sequence[ColumnSource], others: Mapping[str, str], reading: Reading
) -> tuple[Table, list[Problem]]:
    """The columns of a table, and what is wrong with it as a whole.

    ``others`` are further columns, each with what in site.toml asks for it. Raises InputError: it is no table.
    """
    table = read_table(path, file, {*others, *(source.local_name for source in sources)})
    wanted = {source.local_name: "the modality's columns in site.toml" for source in sources} | dict(others)
    names = dict.fromkeys([*others, *wanted])
    problems = [table.absent(name, wanted[name]) for name in names if name not in table.header]
    if reading.may_be_empty:
        return table, problems
    present = [source for source in sources if source.local_name in table.cells]
    if not len(table):
        problems.append(Problem(file, "", "has no rows", "Add patients, or remove the modality."))
    elif present and all(source.is_missing(cell) for source in present for cell in table.cells[source.local_name]):
        problems.append(Problem(file, "", "has no value in any row", "Add values, or remove the modality."))
    return table, problems


def read_values(
    table: Table, sources: Iterable[ColumnSource], rows: Sequence[int], lines: LineProblems
) -> list[Tensor]:
    """(N,) float64 values or int64 codes of the given rows, by column; what is wrong is added to ``lines``.

    Columns that the table lacks are left out.
    """
    return [_read_column(table, source, rows, lines) for source in sources if source.local_name in table.cells]


def encode_values(
    sources: Sequence[ColumnSource], values: Sequence[Tensor], training: Sequence[int]
) -> tuple[tuple[Column, ...], Tensor]:
    """The columns, scaled by the training rows where no range is declared, and the (N, F) float32 features."""
    columns = tuple(_fitted(source, values_N, training) for source, values_N in zip(sources, values, strict=True))
    features = [encode(column, values_N) for column, values_N in zip(columns, values, strict=True)]
    return columns, torch.cat(features, dim=1)


def add_infinite(features_NF: Tensor, numbers: Iterable[int], lines: LineProblems) -> None:
    """Add the lines whose features are infinite: their values are too far from the scale of the training rows."""
    for number, infinite in zip(numbers, features_NF.isinf().any(dim=1).tolist(), strict=True):
        if infinite:
            lines.add(number, "", "has a value that is " + TOO_LARGE.what.removeprefix("is "), TOO_LARGE.remedy)


def is_present(source: ColumnSource, values_N: Tensor) -> Tensor:
    """(N,) bool: which of a column's values are there."""
    return values_N != MISSING_CODE if isinstance(source.definition, CategoricalColumn) else ~values_N.isnan()


def _definition(local: LocalNumericColumn | LocalCategoricalColumn) -> Definition:
    if isinstance(local, LocalCategoricalColumn):
        return CategoricalColumn(name=local.name, categories=local.categories)
    if local.range is not None:
        return NumericColumn(name=local.name, unit=local.unit, range=local.range, typical=local.typical)
    return local


def _known_sources(entry: TableEntry, columns: Sequence[Column]) -> tuple[ColumnSource, ...]:
    """In the order of the trained encoder, whatever that of the entry."""
    maps: dict[str, ColumnMap] = {**entry.columns, **{local.name: local for local in entry.definitions}}
    return tuple(_known_source(entry, column, maps.get(column.name, ColumnMap())) for column in columns)


def _known_source(entry: TableEntry, column: Column, column_map: ColumnMap) -> ColumnSource:
    if isinstance(column, CategoricalColumn):
        return _source(entry, column, column_map)
    # the scale may have been fitted, and values lie beyond it: only a range that is declared says what is plausible
    declared = column_map.range if isinstance(column_map, LocalNumericColumn) else None
    local = LocalNumericColumn(name=column.name, unit=column.unit, range=declared)
    return replace(_source(entry, _definition(local), column_map), known=column)


def _source(entry: TableEntry, definition: Definition, column_map: ColumnMap) -> ColumnSource:
    codes: dict[str, int] = {}
    if isinstance(definition, CategoricalColumn):
        of_category = {category: code for code, category in enumerate(definition.categories)}
        of_local = {cell: of_category[to] for cell, to in column_map.values.items() if to in of_category}
        exact = of_category | of_local
        codes = {canonical(cell): code for cell, code in exact.items()} | exact
    missing = frozenset((*entry.missing, *column_map.missing))
    return ColumnSource(definition, column_map.column or definition.name, missing, codes)


def read_number(cell: str, column: NumericColumn | LocalNumericColumn) -> float | Finding:
    """The number in a cell that is not missing, or what is wrong with it."""
    if NOT_FINITE.fullmatch(cell):
        return Finding("is not a finite number", "Leave the cell empty, or declare the spelling as missing.")
    if not NUMBER.fullmatch(cell):
        remedy = "Write a number with a decimal point, or declare the spelling as missing."
        return Finding("is not a number", remedy)
    value = float(cell)
    if isinstance(column, NumericColumn):
        low, high = column.range
        if not low <= value <= high:
            unit = f" {column.unit}" if column.unit else ""
            what = f"is outside the plausible range {low:.15g} to {high:.15g}{unit}"
            return Finding(what, "Correct the value or its unit, or declare the spelling as missing.")
    elif abs(value) > LARGEST_MEASUREMENT:
        return TOO_LARGE
    return value


def _read_column(table: Table, source: ColumnSource, rows: Sequence[int], lines: LineProblems) -> Tensor:
    """(R,) float64 values or int64 codes of the given rows; what is wrong is added to ``lines``."""
    categorical = isinstance(source.definition, CategoricalColumn)
    cells = [table.cells[source.local_name][row] for row in rows]
    meaning = {cell: source.read(cell) for cell in set(cells)}
    values: list[float] = []
    for row, cell in zip(rows, cells, strict=True):
        value = meaning[cell]
        if isinstance(value, Finding):
            lines.add(table.lines[row], source.local_name, value.what, value.remedy)
            value = MISSING_CODE
        values.append(value)
    return torch.tensor(values, dtype=torch.int64 if categorical else torch.float64)


def _fitted(source: ColumnSource, values_N: Tensor, training: Sequence[int]) -> NumericColumn | CategoricalColumn:
    definition = source.definition
    if source.known is not None:
        return source.known
    if isinstance(definition, LocalNumericColumn):
        return fit_numeric(definition.name, values_N[list(training)], definition.unit)
    return definition
