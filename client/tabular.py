"""A modality's table as the features that its encoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from client.columns import (
    ColumnSource,
    add_infinite,
    column_sources,
    encode_values,
    is_present,
    read_columns,
    read_values,
    reserved_problems,
)
from client.modality_entry import ModalityData, Reading
from client.tables import LineProblems
from client.tabular_entry import TableEntry
from flexmoe_core.errors import Problem
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.tabular import TabularModality, TabularPreprocessing


class TabularEntry(TableEntry):
    """A table of the site: one line per patient."""

    def read(self, modality: Modality, reading: Reading) -> tuple[ModalityData | None, list[Problem]]:
        """The table's features, and every problem with them."""
        assert isinstance(modality, TabularModality)
        sources = column_sources(self, modality, reading.known_of(self.name))
        if not sources:
            return None, []  # the manifest's own problem: a local encoder without columns
        path = self.path(reading)
        if found := reserved_problems(self.name, (source.local_name for source in sources), path, reading):
            return None, found
        return _read(path, reading.file(self.file), sources, reading)


def _read(
    path: Path, file: str, sources: Sequence[ColumnSource], reading: Reading
) -> tuple[ModalityData | None, list[Problem]]:
    id_column = reading.section.id
    table, problems = read_columns(path, file, sources, {id_column: "the key 'id' of [site]"}, reading)
    lines = LineProblems(file, table.unit)
    rows: dict[str, int] = {}
    if id_column in table.cells:
        rows = reading.rows_of(table.cells[id_column], table.lines, id_column, lines)
    rows = reading.chosen(rows, fitted=any(source.is_fitted for source in sources))
    looked_into = range(len(table)) if reading.patients is None else list(rows.values())
    values = read_values(table, sources, looked_into, lines)
    problems.extend(lines.problems())
    if problems or reading.patients is None:
        return None, problems
    columns, x_RF = encode_values(sources, values, reading.training_places(rows))
    add_infinite(x_RF, (table.lines[row] for row in looked_into), lines)
    if found := lines.problems():
        return None, found
    present = [is_present(source, values_R) for source, values_R in zip(sources, values, strict=True)]
    places = {patient: place for place, patient in enumerate(rows)}
    return ModalityData(TabularPreprocessing(columns=columns), places, x_RF, torch.stack(present).any(dim=0)), []
