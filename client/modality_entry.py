"""What every kind of modality has in common at a site: an entry in site.toml, which reads the files it names.

Shapes: R patients of the files, B patients asked for; the axes after the first are the kind's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from client.manifest import SiteSection, site_file
from client.patients import Patients
from client.tables import LineProblems
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.validation import Finding, FrozenModel, SafeName

OTHER_SCALE = Finding("is not the scale that the bundle was made with", "Remove it: the bundle's is used.")
RowsT = TypeVar("RowsT")


@dataclass(frozen=True)
class ModalityData:
    """Patients of one modality: the row of each id, their (R, ...) float32 inputs, and whether each has any value."""

    preprocessing: AnyPreprocessing
    rows: Mapping[str, int]
    x_R: Tensor
    observed_R: Tensor

    def select(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, ...) inputs, zero for patients who lack the modality, and (B,) bool: who has it."""
        rows_B = torch.tensor([self.rows.get(patient, -1) for patient in ids], dtype=torch.int64)
        observed_B = torch.nn.functional.pad(self.observed_R, (0, 1))[rows_B]  # row -1 stands for everybody else
        x_B = self.x_R.new_zeros(len(ids), *self.x_R.shape[1:])
        x_B[observed_B] = self.x_R[rows_B[observed_B]]
        return x_B, observed_B


@dataclass(frozen=True)
class Reading:
    """What is read: where, and of whom.

    ``label`` is the site's name of the label. ``patients`` is None when the patients file could not be read: then all
    that can be checked without it is, and no data come of it. ``known`` is what made the inputs of a model that
    is trained already, by modality: it holds for new patients too, and nothing is fitted to them.
    """

    folder: Path
    section: SiteSection
    label: str
    patients: Patients | None
    splits: Collection[str]
    known: Mapping[str, AnyPreprocessing] | None = None

    def known_of(self, name: str) -> AnyPreprocessing | None:
        """What made a modality's inputs of the trained model; None in training."""
        return None if self.known is None else self.known[name]

    @property
    def may_be_empty(self) -> bool:
        """Whether a modality's file may be without any value: a few new patients may all lack it."""
        return self.known is not None

    def file(self, name: str) -> str:
        """A file of the folder as the user knows it."""
        return str(self.folder / name)

    @property
    def reserved_columns(self) -> tuple[str, ...]:
        """Columns of the patients file that no encoder may see."""
        return (self.section.id, self.section.split, self.label)

    def is_patients_file(self, path: Path) -> bool:
        """Whether a modality's file is the patients file itself."""
        try:
            return path == site_file(self.folder, self.section.patients, "site.patients")
        except InputError:  # said where the patients are read
            return False

    def rows_of(self, ids: Sequence[str], numbers: Sequence[int], column: str, lines: LineProblems) -> dict[str, int]:
        """The first row of every patient; ``numbers`` are the rows' lines. What is wrong with ids joins ``lines``."""
        rows: dict[str, int] = {}
        for row, (patient, line) in enumerate(zip(ids, numbers, strict=True)):
            if patient and patient in rows:
                lines.add(line, column, "repeats an earlier patient", "Keep one line per patient.")
            else:
                self._check_id(patient, line, column, lines)
            rows.setdefault(patient, row)
        return rows

    def all_rows_of(
        self, ids: Sequence[str], numbers: Sequence[int], column: str, lines: LineProblems
    ) -> dict[str, list[int]]:
        """All rows of every patient, of a file that may have several; otherwise like ``rows_of``."""
        rows: dict[str, list[int]] = {}
        for row, (patient, line) in enumerate(zip(ids, numbers, strict=True)):
            self._check_id(patient, line, column, lines)
            rows.setdefault(patient, []).append(row)
        return rows

    def _check_id(self, patient: str, line: int, column: str, lines: LineProblems) -> None:
        if not patient:
            lines.add(line, column, "has no patient id", "Fill it in or remove the line.")
        elif self.patients is not None and patient not in self.patients.splits:
            remedy = "Add the patient there, or remove the line."
            lines.add(line, column, "is no patient of the patients file", remedy)

    def chosen(self, rows: Mapping[str, RowsT], *, fitted: bool) -> dict[str, RowsT]:
        """The rows to look into: of the splits asked for, and of training patients if a scale is ``fitted``.

        Where it is known already, none is.
        """
        if self.patients is None:
            return dict(rows)
        splits = {*self.splits, "train"} if fitted and self.known is None else {*self.splits}
        return {patient: row for patient, row in rows.items() if self.patients.splits.get(patient) in splits}

    def training_places(self, patients: Collection[str]) -> list[int]:
        """The positions of training patients among the given ones."""
        splits = self.patients.splits if self.patients is not None else {}
        return [place for place, patient in enumerate(patients) if splits.get(patient) == "train"]


class ModalityEntry(FrozenModel):
    """One [[modality]] of site.toml. Each kind has its own keys, and reads its own files."""

    name: SafeName

    @abstractmethod
    def files(self, folder: Path) -> Sequence[str]:
        """The names, in the folder, of all files that its tensors depend on. May raise InputError or OSError."""

    @abstractmethod
    def undeclared_ranges(self, modality: Modality) -> Iterator[str]:
        """The absent keys, below the entry, in place of which a scale is fitted to the site's training patients.

        With all of them declared, what becomes of a patient's values depends on no other patient.
        """

    def findings(self, modality: Modality, known: AnyPreprocessing | None = None) -> Iterator[Finding]:
        """Everything in which the entry does not fit the study; each place is below the entry.

        With ``known``, what made a trained model's inputs, a local encoder's entry must fit that, and may leave to it
        what a site would declare.
        """
        yield from ()

    @abstractmethod
    def read(self, modality: Modality, reading: Reading) -> tuple[ModalityData | None, list[Problem]]:
        """The modality of the patients asked for, and every problem; None when there are any.

        Rows of other patients are not looked into. Raises InputError when a file is not what its name says.
        """


class OneFileEntry(ModalityEntry):
    """An entry of a kind whose patients all stand in one file."""

    file: str

    def files(self, folder: Path) -> Sequence[str]:
        """The one file."""
        return (self.file,)

    def path(self, reading: Reading) -> Path:
        """Where the file is. Raises InputError when it is not in the site folder."""
        return site_file(reading.folder, self.file, f"modality.{self.name}.file")
