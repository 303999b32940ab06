"""A site's precomputed vectors as the numbers that their encoder takes.

Shapes: R patients of the file, F numbers of the vector.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from client.arrays import read_npz
from client.modality_entry import OTHER_SCALE, ModalityData, OneFileEntry, Reading
from client.tables import LARGEST_MEASUREMENT, NOT_FINITE, NUMBER, LineProblems, Table, read_table
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.embedding import LONGEST_VECTOR, EmbeddingModality, EmbeddingPreprocessing
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.modalities.scale import Range
from flexmoe_core.validation import Finding, raise_if_any

IDS, VALUES = "ids", "values"
TOO_LARGE = ("has a vector with a number too large to be meant", "Correct it, or leave the vector empty.")


@dataclass(frozen=True)
class _Vectors:
    """A file's vectors, NaN where a number is missing; ``numbers`` gives each row's line, ``lines`` names them."""

    ids: list[str]
    numbers: list[int]
    id_column: str
    lines: LineProblems
    values_RF: Tensor


class EmbeddingEntry(OneFileEntry):
    """A file of one vector per patient: .npz with the arrays ids and values, or a table of nothing else.

    Of a local encoder it may also declare the scale: one ``range`` for all numbers, or ``ranges``, one for each.
    """

    range: Range | None = None
    ranges: tuple[Range, ...] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> EmbeddingEntry:
        if self.range is not None and self.ranges is not None:
            raise_if_any([Finding("cannot stand beside ranges", "Keep one of the two.", "range")])
        return self

    def undeclared_ranges(self, modality: Modality) -> Iterator[str]:
        """That of the vectors of a local encoder."""
        if modality.encoder == "local" and self.range is None and self.ranges is None:
            yield "range"

    def findings(self, modality: Modality, known: AnyPreprocessing | None = None) -> Iterator[Finding]:
        """Whether the scale is declared where it may be, and as for the training."""
        assert known is None or isinstance(known, EmbeddingPreprocessing)
        if self.range is None and self.ranges is None:
            return
        key = "range" if self.ranges is None else "ranges"
        if modality.encoder == "shared":
            yield Finding("is not allowed with a shared encoder", "Remove it: the study declares it.", key)
        elif known is not None and self._declared(len(known.ranges)) != known.ranges:
            yield Finding(OTHER_SCALE.what, OTHER_SCALE.remedy, key)

    def read(self, modality: Modality, reading: Reading) -> tuple[ModalityData | None, list[Problem]]:
        """The vectors on the model's scale, and every problem with them."""
        assert isinstance(modality, EmbeddingModality)
        path, file = self.path(reading), reading.file(self.file)
        vectors = _read_npz(path, file) if path.suffix.lower() == ".npz" else _read_table(path, file, reading)
        lines = vectors.lines
        rows = reading.rows_of(vectors.ids, vectors.numbers, vectors.id_column, lines)
        rows = reading.chosen(rows, fitted=any(self.undeclared_ranges(modality)))
        values_RF, numbers = vectors.values_RF[list(rows.values())], [vectors.numbers[row] for row in rows.values()]
        _add_row_problems(values_RF, numbers, lines)
        problems = [*_size_problems(vectors.values_RF, file, modality, reading), *self._count_problems(vectors, file)]
        problems.extend(lines.problems())
        if problems or reading.patients is None:
            return None, problems
        data = _encoded(values_RF, rows, self._preprocessing(values_RF, rows, modality, reading))
        for number, infinite in zip(numbers, data.x_R.isinf().any(dim=1).tolist(), strict=True):
            if infinite:
                lines.add(number, "", *TOO_LARGE)
        found = lines.problems()
        return (None if found else data), found

    def _declared(self, size: int) -> tuple[Range, ...] | None:
        """The range of each number, None where a scale is to be fitted."""
        return self.ranges if self.range is None else (self.range,) * size

    def _count_problems(self, vectors: _Vectors, file: str) -> Iterator[Problem]:
        size = vectors.values_RF.shape[1]
        if self.ranges is not None and len(self.ranges) != size:
            what = f"has vectors of {size} numbers, but site.toml declares {len(self.ranges)} ranges"
            yield Problem(file, "", what, "Give one for each number.")

    def _preprocessing(
        self, values_RF: Tensor, rows: Collection[str], modality: EmbeddingModality, reading: Reading
    ) -> EmbeddingPreprocessing:
        """The study's, that of a trained local encoder, a declared one, or one fitted to the training patients."""
        if modality.encoder == "shared":
            return modality.preprocessing
        if (known := reading.known_of(modality.name)) is not None:
            assert isinstance(known, EmbeddingPreprocessing)
            return known
        if (declared := self._declared(values_RF.shape[1])) is not None:
            return EmbeddingPreprocessing(ranges=declared)
        training_RF = values_RF[reading.training_places(rows)]
        return EmbeddingPreprocessing.fitted(training_RF[~training_RF.isnan().all(dim=1)])


def _read_npz(path: Path, file: str) -> _Vectors:
    arrays = read_npz(path, file, (IDS, VALUES))
    ids, values = arrays[IDS], arrays[VALUES]
    problems = []
    if ids.dtype.kind != "U":
        remedy = "Save the ids as text: numpy.array(ids, dtype=str)."
        problems.append(Problem(file, f"array {IDS}", "is not of text", remedy))
    if values.dtype.kind != "f":
        remedy = "Save the vectors as numpy.float32."
        problems.append(Problem(file, f"array {VALUES}", "is not of floating-point numbers", remedy))
    if ids.ndim != 1 or values.ndim != 2 or len(ids) != len(values):
        what = f"do not have the shapes (patients,) and (patients, size): {ids.shape} and {values.shape}"
        problems.append(Problem(file, f"arrays {IDS} and {VALUES}", what, "Save one vector for each id."))
    if problems:
        raise InputError(problems)
    lines = LineProblems(file, "row", part="array")
    names = [str(name).strip() for name in ids.tolist()]
    return _Vectors(names, list(range(1, len(ids) + 1)), IDS, lines, torch.from_numpy(values.astype(np.float64)))


def _read_table(path: Path, file: str, reading: Reading) -> _Vectors:
    """All columns but the id's are the vector, in the order of the file."""
    if path.suffix.lower() not in {".csv", ".parquet"}:
        what = "is neither .npz nor .csv nor .parquet"
        raise InputError([Problem(file, "", what, "Export the vectors as one of these.")])
    table = read_table(path, file, None)
    id_column = reading.section.id
    names = [name for name in table.header if name != id_column]
    problems = [] if id_column in table.header else [table.absent(id_column, "the key 'id' of [site]")]
    if "" in names:
        remedy = "Remove it, as an index that was exported, or name it."
        problems.append(Problem(file, "header", "has a column without a name", remedy))
    for name in names:
        if name in reading.reserved_columns:
            what = f"has the column '{name}', which is called as the label or split of the patients"
            problems.append(Problem(file, "", what, "Remove it: all columns but the id are the vector."))
    if problems:
        raise InputError(problems)
    lines = LineProblems(file, table.unit)
    values = [_read_column(table, name, lines) for name in names]
    if found := lines.problems():
        raise InputError(found)
    values_RF = torch.stack(values, dim=1) if values else torch.zeros(len(table), 0, dtype=torch.float64)
    return _Vectors(list(table.cells[id_column]), list(table.lines), id_column, lines, values_RF)


def _read_column(table: Table, name: str, lines: LineProblems) -> Tensor:
    """(R,) float64; a cell is NaN where it is empty or says so, and what is no number is added to ``lines``."""
    values_R = torch.full((len(table),), math.nan, dtype=torch.float64)
    for row, cell in enumerate(table.cells[name]):
        if NUMBER.fullmatch(cell) or NOT_FINITE.fullmatch(cell):
            values_R[row] = float(cell)
        elif cell:
            lines.add(table.lines[row], name, "is not a number", "Write a number with a decimal point.")
    return values_R


def _size_problems(values_RF: Tensor, file: str, modality: EmbeddingModality, reading: Reading) -> list[Problem]:
    count, size = values_RF.shape
    known = reading.known_of(modality.name)
    problems = []
    if reading.may_be_empty:
        pass
    elif count == 0:
        problems.append(Problem(file, "", "has no rows", "Add patients, or remove the modality."))
    elif size and bool(values_RF.isnan().all()):
        problems.append(Problem(file, "", "has no value in any row", "Add values, or remove the modality."))
    if modality.encoder == "shared" and size != modality.size:
        what = f"has vectors of {size} numbers, the study's have {modality.size}"
        problems.append(Problem(file, "", what, "Export the vectors that the study describes."))
    elif known is not None and (size,) != known.shape:
        what = f"has vectors of {size} numbers, the bundle was made with {known.shape[0]}"
        problems.append(Problem(file, "", what, "Export the vectors as for the training."))
    elif not 1 <= size <= LONGEST_VECTOR:
        remedy = f"Export vectors of 1 to {LONGEST_VECTOR} numbers."
        problems.append(Problem(file, "", f"has vectors of {size} numbers", remedy))
    return problems


def _add_row_problems(values_RF: Tensor, numbers: Sequence[int], lines: LineProblems) -> None:
    missing_RF = values_RF.isnan()
    partly_R = missing_RF.any(dim=1) & ~missing_RF.all(dim=1)
    infinite_R = values_RF.isinf().any(dim=1)
    large_R = ~infinite_R & (values_RF.abs() > LARGEST_MEASUREMENT).any(dim=1)
    for number, partly, infinite, large in zip(
        numbers, partly_R.tolist(), infinite_R.tolist(), large_R.tolist(), strict=True
    ):
        if partly:
            remedy = "Fill in all of its numbers, or none where the patient lacks the modality."
            lines.add(number, "", "has a vector that is partly missing", remedy)
        if infinite:
            lines.add(number, "", "has a vector with an infinite number", "Correct it, or leave the vector empty.")
        if large:
            lines.add(number, "", *TOO_LARGE)


def _encoded(values_RF: Tensor, rows: Collection[str], preprocessing: EmbeddingPreprocessing) -> ModalityData:
    observed_R = ~values_RF.isnan().all(dim=1)
    x_RF = preprocessing.encode(values_RF).masked_fill(~observed_R[:, None], 0.0)
    return ModalityData(preprocessing, {patient: row for row, patient in enumerate(rows)}, x_RF, observed_R)
