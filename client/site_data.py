"""A site folder as cohorts, or as every problem in it.

Labels are read only of the splits that are asked for: those of test patients stay unread until the finish.
Shapes: B patients, M modalities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from client.manifest import (
    MANIFEST_FILE,
    Manifest,
    ModalityEntry,
    PublicFacts,
    read_manifest,
    site_file,
    study_problems,
)
from client.patients import SPLITS, Patients, read_patients
from client.tables import LineProblems
from client.tabular import ModalityData, column_sources, read_modality
from flexmoe_core.cohort import Cohort
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import Column, Study

ModalityColumns = Mapping[str, tuple[Column, ...]]
COLUMNS = TypeAdapter(dict[str, tuple[Column, ...]])


@dataclass(frozen=True)
class SiteData:
    """What a hospital declares, and the patients of the splits that were asked for.

    ``modalities`` are those that the site lists, in the study's order. ``columns`` are the columns behind the
    features of every modality that its model encodes: all shared ones, listed or not, and its own local ones,
    which carry the scale fitted to its training patients. Each of these has an input in the ``cohorts``, which
    like ``ids`` have one entry per split, patients in the order of the patients file.
    """

    name: str
    public: PublicFacts
    modalities: tuple[str, ...]
    columns: ModalityColumns
    cohorts: Mapping[str, Cohort]
    ids: Mapping[str, tuple[str, ...]]

    @property
    def widths(self) -> dict[str, int]:
        """Number of encoded features of each modality that the site's model encodes."""
        return {name: sum(column.width for column in columns) for name, columns in self.columns.items()}

    @property
    def preprocessing(self) -> str:
        """The columns as JSON: with them new patients are encoded as the training patients were."""
        return COLUMNS.dump_json(dict(self.columns)).decode()


def read_site(folder: Path, study: Study, splits: Collection[str]) -> SiteData:
    """The patients of some of the splits train, validation and test. Raises InputError with every problem."""
    if unknown := set(splits).difference(SPLITS):
        raise ValueError(f"unknown splits: {sorted(unknown)}")
    manifest = read_manifest(folder)
    problems = study_problems(manifest, study, str(folder / MANIFEST_FILE))
    patients, found = _read_patients(folder, manifest, study, splits)
    problems.extend(found)
    modalities: dict[str, ModalityData] = {}
    for entry in _known_entries(manifest, study):
        data, found = _read_entry(folder, manifest, entry, study, patients, splits)
        problems.extend(found)
        if data is not None:
            modalities[entry.name] = data
    if patients is not None and "train" in splits and len(modalities) == len(manifest.modalities):
        problems.extend(_unobserved(patients, modalities.values()))
    if problems or patients is None:
        raise InputError(problems)
    ids = {split: patients.of(split) for split in SPLITS if split in splits}
    encoded = modalities | _unlisted(study, modalities)
    return SiteData(
        name=manifest.site.name,
        public=manifest.public,
        modalities=tuple(modalities),
        columns={name: encoded[name].columns for name in study.modality_names if name in encoded},
        cohorts={split: _cohort(ids[split], patients, encoded, study) for split in ids},
        ids=ids,
    )


def _known_entries(manifest: Manifest, study: Study) -> list[ModalityEntry]:
    """The site's modalities that the study knows, in the study's order."""
    known = [entry for entry in manifest.modalities if entry.name in study.modality_names]
    return sorted(known, key=lambda entry: study.modality_names.index(entry.name))


def _read_patients(
    folder: Path, manifest: Manifest, study: Study, splits: Collection[str]
) -> tuple[Patients | None, list[Problem]]:
    name = manifest.site.patients
    try:
        path = site_file(folder, name, "site.patients")
        return read_patients(path, str(folder / name), manifest.site, study.label, splits)
    except InputError as error:
        return None, list(error.problems)


def _read_entry(
    folder: Path,
    manifest: Manifest,
    entry: ModalityEntry,
    study: Study,
    patients: Patients | None,
    splits: Collection[str],
) -> tuple[ModalityData | None, list[Problem]]:
    sources = column_sources(entry, study.modality(entry.name))
    if not sources:
        return None, []  # the manifest's own problem: a local encoder without columns
    place = f"modality.{entry.name}"
    try:
        path = site_file(folder, entry.file, f"{place}.file")
        reserved = _reserved_columns(folder, manifest, study, path)
        used = [source.local_name for source in sources if source.local_name in reserved]
        if used:
            what = f"uses the column '{used[0]}', which holds the id, label or split of the patients"
            problem = Problem(str(folder / MANIFEST_FILE), place, what, "Leave it out: it is no measurement.")
            return None, [problem]
        return read_modality(path, str(folder / entry.file), manifest.site.id, sources, patients, splits)
    except InputError as error:
        return None, list(error.problems)


def _reserved_columns(folder: Path, manifest: Manifest, study: Study, path: Path) -> set[str]:
    """Columns that no encoder may see: a modality may stand in the patients file, its labels may not leak."""
    site = manifest.site
    try:
        shared = path == site_file(folder, site.patients, "site.patients")
    except InputError:  # said where the patients are read
        shared = False
    return {site.id, site.split, site.label or study.label.name} if shared else {site.id}


def _unobserved(patients: Patients, modalities: Collection[ModalityData]) -> list[Problem]:
    """Training patients without any modality."""
    training = patients.of("train")
    observed_MB = torch.stack([data.select(training)[1] for data in modalities])
    lines = LineProblems(patients.file, patients.unit)
    for patient, observed in zip(training, observed_MB.any(dim=0).tolist(), strict=True):
        if not observed:
            what = "is a training patient without any modality"
            lines.add(patients.lines[patient], "", what, "Add values, or remove the patient.")
    return lines.problems()


def _unlisted(study: Study, listed: Collection[str]) -> dict[str, ModalityData]:
    """The shared modalities that the site lacks: their encoders are in its model, and nobody's values."""
    return {
        modality.name: ModalityData(modality.columns, {}, torch.zeros(0, modality.width), torch.zeros(0).bool())
        for modality in study.modalities
        if modality.encoder == "shared" and modality.name not in listed
    }


def _cohort(ids: Sequence[str], patients: Patients, modalities: Mapping[str, ModalityData], study: Study) -> Cohort:
    observed_BM = torch.zeros(len(ids), len(study.modalities), dtype=torch.bool)
    inputs = {}
    for name, data in modalities.items():
        inputs[name], observed_BM[:, study.modality_names.index(name)] = data.select(ids)
    labels_B = torch.tensor([patients.labels[patient] for patient in ids], dtype=torch.int64)
    return Cohort(inputs, observed_BM, labels_B)
