"""A site's measurements over time as the steps that their encoder takes.

Shapes: R patients, N rows of the file, T steps, C channels of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.columns import (
    ColumnSource,
    add_infinite,
    column_sources,
    encode_values,
    read_columns,
    read_number,
    read_values,
    reserved_problems,
)
from client.manifest import LocalName
from client.modality_entry import OTHER_SCALE, ModalityData, Reading
from client.tables import LineProblems, Table
from client.tabular_entry import LocalNumericColumn, TableEntry
from flexmoe_core.errors import Problem
from flexmoe_core.features import fit_numeric
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.modalities.scale import Range
from flexmoe_core.modalities.sequence import SequenceModality, SequencePreprocessing
from flexmoe_core.modalities.tabular import NumericColumn
from flexmoe_core.validation import Finding


class SequenceEntry(TableEntry):
    """A table of the site: any number of lines per patient, each with its time, in any order."""

    time: LocalName = "time"
    time_range: Range | None = None

    def undeclared_ranges(self, modality: Modality) -> Iterator[str]:
        """Those of its own times and numeric columns."""
        if modality.encoder == "local" and self.time_range is None:
            yield "time_range"
        yield from super().undeclared_ranges(modality)

    def findings(self, modality: Modality, known: AnyPreprocessing | None = None) -> Iterator[Finding]:
        """Columns and a range of times that do not fit the study, or a trained local encoder."""
        assert known is None or isinstance(known, SequencePreprocessing)
        if self.time_range is not None and modality.encoder == "shared":
            yield Finding("is not allowed with a shared encoder", "Remove it: the study declares it.", "time_range")
        elif known is not None and self.time_range not in (None, known.time.range):
            yield Finding(OTHER_SCALE.what, OTHER_SCALE.remedy, "time_range")
        yield from super().findings(modality, known)

    def read(self, modality: Modality, reading: Reading) -> tuple[ModalityData | None, list[Problem]]:
        """The patients' steps, and every problem with them."""
        assert isinstance(modality, SequenceModality)
        known = reading.known_of(self.name)
        sources = column_sources(self, modality, known)
        if not sources:
            return None, []  # the manifest's own problem: a local encoder without columns
        path = self.path(reading)
        used = (self.time, *(source.local_name for source in sources))
        if found := reserved_problems(self.name, used, path, reading):
            return None, found
        return _read(path, reading.file(self.file), sources, self._clock(modality, known), reading)

    def _clock(self, modality: SequenceModality, known: AnyPreprocessing | None) -> _Clock:
        assert known is None or isinstance(known, SequencePreprocessing)
        definition: NumericColumn | LocalNumericColumn = modality.time or LocalNumericColumn(name="time")
        if self.time_range is not None:
            definition = NumericColumn(name="time", range=self.time_range)
        return _Clock(self.time, definition, modality.longest, known.time if known else None)


@dataclass(frozen=True)
class _Clock:
    """The column of times, its scale (none where it is fitted), and how many rows of a patient are kept.

    ``known`` is the scale that a model was trained with.
    """

    column: str
    definition: NumericColumn | LocalNumericColumn
    longest: int
    known: NumericColumn | None

    @property
    def is_fitted(self) -> bool:
        """Whether its scale comes from the site's training patients."""
        return isinstance(self.definition, LocalNumericColumn)

    def read(self, table: Table, rows: Sequence[int], lines: LineProblems) -> Tensor:
        """(N,) float64 times of the given rows; what is wrong is left out, and added to ``lines``."""
        unit = self.definition.unit or "one unit"
        remedy = f"Write it as a number, in {unit} from a start that is the same for all, or leave out the line."
        times: list[float] = []
        for row in rows if self.column in table.cells else ():
            cell = table.cells[self.column][row]
            time = read_number(cell, self.definition) if cell else Finding("has no time", remedy)
            if isinstance(time, Finding):
                lines.add(table.lines[row], self.column, time.what, remedy)
            else:
                times.append(time)
        return torch.tensor(times, dtype=torch.float64)

    def fitted(self, times_N: Tensor) -> NumericColumn:
        """The declared scale of time, or that of these rows where none is known."""
        if self.known is not None:
            return self.known
        if isinstance(self.definition, NumericColumn):
            return self.definition
        return fit_numeric(self.definition.name, times_N)


def _read(
    path: Path, file: str, sources: Sequence[ColumnSource], clock: _Clock, reading: Reading
) -> tuple[ModalityData | None, list[Problem]]:
    id_column = reading.section.id
    others = {id_column: "the key 'id' of [site]", clock.column: "the modality's key 'time'"}
    table, problems = read_columns(path, file, sources, others, reading)
    lines = LineProblems(file, table.unit)
    rows: dict[str, list[int]] = {}
    if id_column in table.cells:
        rows = reading.all_rows_of(table.cells[id_column], table.lines, id_column, lines)
    elif reading.patients is None:
        rows = {"": list(range(len(table)))}
    chosen = reading.chosen(rows, fitted=clock.is_fitted or any(source.is_fitted for source in sources))
    measured = _measured(table, sources)
    rows = {patient: kept for patient, of in chosen.items() if (kept := [row for row in of if measured[row]])}
    looked_into = [row for of in rows.values() for row in of]
    times_N = clock.read(table, looked_into, lines)
    values = read_values(table, sources, looked_into, lines)
    problems.extend(lines.problems())
    if problems or reading.patients is None:
        return None, problems
    patient_N = torch.tensor([place for place, of in enumerate(rows.values()) for _ in of], dtype=torch.int64)
    training = torch.isin(patient_N, torch.tensor(reading.training_places(rows), dtype=torch.int64))
    columns, features_NF = encode_values(sources, values, training.nonzero().squeeze(1).tolist())
    time = clock.fitted(times_N[training])
    preprocessing = SequencePreprocessing(columns=columns, time=time, longest=clock.longest)
    rows_NC = torch.cat([preprocessing.scaled_time(times_N)[:, None], features_NF], dim=1)
    add_infinite(rows_NC, (table.lines[row] for row in looked_into), lines)
    if found := lines.problems():
        return None, found
    x_RTC = preprocessing.encode(features_NF, times_N, patient_N, len(rows))
    places = {patient: place for place, patient in enumerate(rows)}
    return ModalityData(preprocessing, places, x_RTC, torch.ones(len(rows), dtype=torch.bool)), []


def _measured(table: Table, sources: Sequence[ColumnSource]) -> list[bool]:
    """By row of the file: whether any of its cells holds a value."""
    measured = [False] * len(table)
    for source in sources:
        cells = table.cells.get(source.local_name, ())
        missing = {cell for cell in set(cells) if source.is_missing(cell)}
        for row, cell in enumerate(cells):
            measured[row] = measured[row] or cell not in missing
    return measured
