"""A modality's table as the features that its encoder takes.

Shapes: R patients of the file, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.manifest import MANIFEST_FILE
from client.modality_entry import ModalityData, OneFileEntry, Reading
from client.tables import LARGEST_MEASUREMENT, NOT_FINITE, NUMBER, LineProblems, Table, canonical, read_table
from client.tabular_entry import ColumnMap, LocalCategoricalColumn, LocalNumericColumn, TableColumns, column_findings
from flexmoe_core.errors import Problem
from flexmoe_core.features import MISSING_CODE, encode, fit_numeric
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.tabular import (
    CategoricalColumn,
    NumericColumn,
    TabularModality,
    TabularPreprocessing,
)
from flexmoe_core.validation import Finding

Definition = NumericColumn | CategoricalColumn | LocalNumericColumn


@dataclass(frozen=True)
class ColumnSource:
    """A column's definition and where its values stand: local name, spellings of missing and of categories."""

    definition: Definition
    local_name: str
    missing: frozenset[str]
    codes: Mapping[str, int]

    def is_missing(self, cell: str) -> bool:
        """Whether the cell holds no value."""
        return not cell or canonical(cell) in self.missing

    def read(self, cell: str) -> float | Finding:
        """The number or the category's code in a cell, NaN or -1 when it is missing; or what is wrong with it."""
        if isinstance(self.definition, CategoricalColumn):
            return self._code(cell, self.definition)
        return math.nan if self.is_missing(cell) else _measurement(cell, self.definition)

    def _code(self, cell: str, column: CategoricalColumn) -> int | Finding:
        if self.is_missing(cell):
            return MISSING_CODE
        code = self.codes.get(cell, self.codes.get(canonical(cell)))
        if code is None:
            remedy = f"Write one of {', '.join(column.categories)}, or add its spelling to values in site.toml."
            return Finding("is in no category", remedy)
        return code


class TabularEntry(OneFileEntry, TableColumns):
    """A table of the site: one line per patient."""

    def findings(self, modality: Modality) -> Iterator[Finding]:
        """Columns that do not fit the study's."""
        assert isinstance(modality, TabularModality)
        return column_findings(self, modality)

    def read(self, modality: Modality, reading: Reading) -> tuple[ModalityData | None, list[Problem]]:
        """The table's features, and every problem with them."""
        assert isinstance(modality, TabularModality)
        sources = column_sources(self, modality)
        if not sources:
            return None, []  # the manifest's own problem: a local encoder without columns
        path = self.path(reading)
        reserved = reading.reserved_columns if reading.is_patients_file(path) else (reading.section.id,)
        used = [source.local_name for source in sources if source.local_name in reserved]
        if used:
            what = f"uses the column '{used[0]}', which holds the id, label or split of the patients"
            place, manifest = f"modality.{self.name}", reading.file(MANIFEST_FILE)
            return None, [Problem(manifest, place, what, "Leave it out: it is no measurement.")]
        return _read(path, reading.file(self.file), sources, reading)


def column_sources(entry: TableColumns, modality: TabularModality) -> tuple[ColumnSource, ...]:
    """Where each column of a modality stands; a study column that is not mapped keeps its name."""
    if modality.encoder == "local":
        return tuple(_source(entry, _definition(local), local) for local in entry.definitions)
    return tuple(_source(entry, column, entry.columns.get(column.name, ColumnMap())) for column in modality.columns)


def _read(
    path: Path, file: str, sources: Sequence[ColumnSource], reading: Reading
) -> tuple[ModalityData | None, list[Problem]]:
    id_column = reading.section.id
    table = read_table(path, file, {id_column, *(source.local_name for source in sources)})
    problems = _column_problems(table, id_column, sources)
    present = [source for source in sources if source.local_name in table.cells]
    if not len(table):
        return None, [*problems, Problem(file, "", "has no rows", "Add patients, or remove the modality.")]
    if present and all(source.is_missing(cell) for source in present for cell in table.cells[source.local_name]):
        problems.append(Problem(file, "", "has no value in any row", "Add values, or remove the modality."))
    lines = LineProblems(file, table.unit)
    rows: dict[str, int] = {}
    if id_column in table.cells:
        rows = reading.rows_of(table.cells[id_column], table.lines, id_column, lines)
    rows = reading.chosen(rows, fitted=any(_is_fitted(source.definition) for source in sources))
    looked_into = range(len(table)) if reading.patients is None else list(rows.values())
    values = [_read_column(table, source, looked_into, lines) for source in present]
    problems.extend(lines.problems())
    if problems or reading.patients is None:
        return None, problems
    places = {patient: place for place, patient in enumerate(rows)}
    return _encoded(sources, values, places, reading.training_places(rows)), []


def _definition(local: LocalNumericColumn | LocalCategoricalColumn) -> Definition:
    if isinstance(local, LocalCategoricalColumn):
        return CategoricalColumn(name=local.name, categories=local.categories)
    return local


def _is_fitted(definition: Definition) -> bool:
    return isinstance(definition, LocalNumericColumn)


def _source(entry: TableColumns, definition: Definition, column_map: ColumnMap) -> ColumnSource:
    codes: dict[str, int] = {}
    if isinstance(definition, CategoricalColumn):
        of_category = {category: code for code, category in enumerate(definition.categories)}
        of_local = {cell: of_category[to] for cell, to in column_map.values.items() if to in of_category}
        exact = of_category | of_local
        codes = {canonical(cell): code for cell, code in exact.items()} | exact
    missing = frozenset((*entry.missing, *column_map.missing))
    return ColumnSource(definition, column_map.column or definition.name, missing, codes)


def _column_problems(table: Table, id_column: str, sources: Iterable[ColumnSource]) -> list[Problem]:
    absent = [] if id_column in table.header else [table.absent(id_column, "the key 'id' of [site]")]
    names = dict.fromkeys(source.local_name for source in sources)
    return absent + [
        table.absent(name, "the modality's columns in site.toml") for name in names if name not in table.header
    ]


def _measurement(cell: str, column: NumericColumn | LocalNumericColumn) -> float | Finding:
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
        return Finding("is too large to be a measurement", "Correct it, or declare the spelling as missing.")
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


def _encoded(
    sources: Sequence[ColumnSource], values: Sequence[Tensor], rows: Mapping[str, int], training: Sequence[int]
) -> ModalityData:
    columns: list[NumericColumn | CategoricalColumn] = []
    present = []
    for source, values_R in zip(sources, values, strict=True):
        definition = source.definition
        if isinstance(definition, LocalNumericColumn):
            definition = fit_numeric(definition.name, values_R[list(training)], definition.unit)
        columns.append(definition)
        missing_R = values_R == MISSING_CODE if isinstance(definition, CategoricalColumn) else values_R.isnan()
        present.append(~missing_R)
    features = [encode(column, values_R) for column, values_R in zip(columns, values, strict=True)]
    preprocessing = TabularPreprocessing(columns=tuple(columns))
    return ModalityData(preprocessing, rows, torch.cat(features, dim=1), torch.stack(present).any(dim=0))
