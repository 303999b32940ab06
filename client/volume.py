"""A site's volumes as the tensors that their encoder takes: a table says which file is whose.

Shapes: R patients with a volume, D, H, W voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from client.columns import reserved_problems
from client.manifest import LocalName, file_inside, site_file
from client.modality_entry import OTHER_SCALE, ModalityData, OneFileEntry, Reading
from client.tables import LineProblems, Table, read_table
from client.volume_files import VolumeForm, read_volume
from flexmoe_core.errors import Problem
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.modalities.scale import Range
from flexmoe_core.modalities.volume import Spacing, VolumeModality, VolumePreprocessing, VolumeShape, by_axis
from flexmoe_core.validation import Finding, Findings


class VolumeEntry(OneFileEntry):
    """A table of patients and the paths of their volumes; of a local encoder also what these look like."""

    path_column: LocalName = "path"
    voxels: VolumeShape | None = Field(default=None, alias="shape")
    spacing: Spacing | None = None
    range: Range | None = None

    def files(self, folder: Path) -> Sequence[str]:
        """The table, and every volume that it names."""
        path = site_file(folder, self.file, f"modality.{self.name}.file")
        cells = read_table(path, self.file, (self.path_column,)).cells.get(self.path_column, ())
        return (self.file, *(cell for cell in cells if cell))

    def undeclared_ranges(self, modality: Modality) -> Iterator[str]:
        """That of the intensities of a local encoder."""
        if modality.encoder == "local" and self.range is None:
            yield "range"

    def findings(self, modality: Modality, known: AnyPreprocessing | None = None) -> Iterator[Finding]:
        """Whether shape, spacing and range are declared where they should be, and as for the training."""
        if modality.encoder == "local" and known is not None:
            assert isinstance(known, VolumePreprocessing)
            if self.range not in (None, known.range):
                yield Finding(OTHER_SCALE.what, OTHER_SCALE.remedy, "range")
            if self.voxels is not None and self.voxels != known.shape:
                what = f"is not that of the bundle: {by_axis(known.shape)}"
                yield Finding(what, "Resample the volumes to it, or remove the key.", "shape")
        elif modality.encoder == "local" and self.voxels is None:
            yield Finding("is missing", "Declare the shape of the site's volumes: the encoder is local.", "shape")
        if modality.encoder == "shared":
            for key, value in {"shape": self.voxels, "spacing": self.spacing, "range": self.range}.items():
                if value is not None:
                    yield Finding("is not allowed with a shared encoder", "Remove it: the study declares it.", key)

    def read(self, modality: Modality, reading: Reading) -> tuple[ModalityData | None, list[Problem]]:
        """The volumes on the model's scale, and every problem with them."""
        assert isinstance(modality, VolumeModality)
        path, file, id_column = self.path(reading), reading.file(self.file), reading.section.id
        if reserved := reserved_problems(self.name, (self.path_column,), path, reading):
            return None, reserved
        table = read_table(path, file, (id_column, self.path_column))
        problems = self._column_problems(table, reading)
        lines, form = LineProblems(file, table.unit), self._form(modality, reading)
        rows: dict[str, int] = {}
        if id_column in table.cells:
            rows = reading.rows_of(table.cells[id_column], table.lines, id_column, lines)
            rows = reading.chosen(rows, fitted=any(self.undeclared_ranges(modality)))
        if form is None or self.path_column not in table.cells:
            return None, [*problems, *lines.problems()]
        files = self._files(reading.folder, table, rows, lines)
        volumes_RDHW = _read_volumes(files, form, table, rows, self.path_column, lines)
        problems.extend(lines.problems())
        if problems or reading.patients is None:
            return None, problems
        return _encoded(volumes_RDHW, list(files), modality.name, form, reading), []

    def _column_problems(self, table: Table, reading: Reading) -> list[Problem]:
        wanted = {
            reading.section.id: "the key 'id' of [site]",
            self.path_column: f"the key 'path_column' of '{self.name}'",
        }
        problems = [table.absent(name, key) for name, key in wanted.items() if name not in table.header]
        if reading.may_be_empty:
            return problems
        if not len(table):
            problems.append(Problem(table.file, "", "has no rows", "Add patients, or remove the modality."))
        elif not any(table.cells.get(self.path_column, ("?",))):
            what = "has no path in any row"
            problems.append(Problem(table.file, "", what, "Add paths, or remove the modality."))
        return problems

    def _form(self, modality: VolumeModality, reading: Reading) -> VolumeForm | None:
        """What volumes should look like; None where the manifest does not say it, which is its own problem."""
        source = modality if modality.encoder == "shared" else self
        known = reading.known_of(self.name)
        assert known is None or isinstance(known, VolumePreprocessing)
        voxels = known.voxels if known is not None else source.voxels
        return None if voxels is None else VolumeForm(voxels, source.spacing, source.range)

    def _files(self, folder: Path, table: Table, rows: Mapping[str, int], lines: LineProblems) -> dict[str, Path]:
        """The file of each patient who has a usable path; what is wrong with a path joins ``lines``."""
        files: dict[str, Path] = {}
        for patient, row in rows.items():
            if name := table.cells[self.path_column][row]:
                path = file_inside(folder, name)
                if isinstance(path, Path) and path in files.values():
                    path = Finding("names the file of an earlier patient", "Name each patient's own.")
                if isinstance(path, Path):
                    files[patient] = path
                else:
                    lines.add(table.lines[row], self.path_column, path.what, path.remedy)
        return files


def _read_volumes(
    files: Mapping[str, Path],
    form: VolumeForm,
    table: Table,
    rows: Mapping[str, int],
    column: str,
    lines: LineProblems,
) -> Tensor:
    """(R, D, H, W) float32 of the patients of ``files``; what is wrong with a file joins ``lines``."""
    volumes_RDHW = torch.zeros(len(files), *form.shape)
    for place, (patient, path) in enumerate(files.items()):
        try:
            volumes_RDHW[place] = read_volume(path, form)
        except Findings as found:
            for finding in found.findings:
                lines.add(table.lines[rows[patient]], column, finding.what, finding.remedy)
    return volumes_RDHW


def _encoded(
    volumes_RDHW: Tensor, patients: Sequence[str], modality: str, form: VolumeForm, reading: Reading
) -> ModalityData:
    """The volumes, scaled in place: a copy of all would need their memory twice."""
    known = reading.known_of(modality)
    if known is not None:
        assert isinstance(known, VolumePreprocessing)
        preprocessing = known
    elif form.range is not None:
        preprocessing = VolumePreprocessing(voxels=form.shape, range=form.range)
    else:
        preprocessing = VolumePreprocessing.fitted(form.shape, volumes_RDHW, reading.training_places(patients))
    for volume_DHW in volumes_RDHW:
        volume_DHW.copy_(preprocessing.encode(volume_DHW))
    rows = {patient: row for row, patient in enumerate(patients)}
    return ModalityData(preprocessing, rows, volumes_RDHW, torch.ones(len(patients), dtype=torch.bool))
