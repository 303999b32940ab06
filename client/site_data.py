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

from client.entries import SiteManifest, read_site_manifest, require_declared_scales, study_problems
from client.manifest import MANIFEST_FILE, Manifest, PublicFacts, site_file
from client.modality_entry import ModalityData, ModalityEntry, Reading
from client.patients import SPLITS, Patients, read_patients
from client.tables import LineProblems
from flexmoe_core.cohort import Cohort
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.study import Study

PREPROCESSING = TypeAdapter(dict[str, AnyPreprocessing])


@dataclass(frozen=True)
class SiteData:
    """What a hospital declares, and the patients of the splits that were asked for.

    ``modalities`` are those that the site lists, in the study's order. ``preprocessing`` is that of every
    modality that its model encodes: all shared ones, listed or not, and its own local ones, which carry the scale
    declared in site.toml or fitted to its training patients. Each of these has an input in the ``cohorts``, which
    like ``ids`` have one entry per split, patients in the order of the patients file.
    """

    name: str
    public: PublicFacts
    modalities: tuple[str, ...]
    preprocessing: Mapping[str, AnyPreprocessing]
    cohorts: Mapping[str, Cohort]
    ids: Mapping[str, tuple[str, ...]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One patient's input of each modality that the site's model encodes."""
        return {name: preprocessing.shape for name, preprocessing in self.preprocessing.items()}


def read_site(folder: Path, study: Study, splits: Collection[str], *, fitting: bool = True) -> SiteData:
    """The patients of some of the splits train, validation and test. Raises InputError with every problem.

    Without ``fitting``, as patient-level privacy asks, a patient's tensors depend on no other patient: before any
    patient is read, InputError names every scale that site.toml does not declare.
    """
    if unknown := set(splits).difference(SPLITS):
        raise ValueError(f"unknown splits: {sorted(unknown)}")
    declared = read_site_manifest(folder, study)
    if not fitting:
        require_declared_scales(declared, study, str(folder / MANIFEST_FILE))
    manifest = declared.manifest
    problems = study_problems(declared, study, str(folder / MANIFEST_FILE))
    reading, found = _read_patients(folder, declared, study, splits)
    patients = reading.patients
    problems.extend(found)
    modalities, found = read_modalities(declared.entries, study, reading)
    problems.extend(found)
    if patients is not None and "train" in splits and len(modalities) == len(manifest.modalities):
        problems.extend(_unobserved(patients, modalities.values()))
    if problems or patients is None:
        raise InputError(problems)
    ids = {split: patients.of(split) for split in SPLITS if split in splits}
    shared = {one.name: one.preprocessing for one in study.modalities if one.encoder == "shared"}
    encoded = modalities | unlisted(shared, modalities)
    return SiteData(
        name=manifest.site.name,
        public=manifest.public,
        modalities=tuple(modalities),
        preprocessing={name: encoded[name].preprocessing for name in study.modality_names if name in encoded},
        cohorts={split: cohort_of(ids[split], patients, encoded, study) for split in ids},
        ids=ids,
    )


def _read_patients(
    folder: Path, declared: SiteManifest[Manifest], study: Study, splits: Collection[str]
) -> tuple[Reading, list[Problem]]:
    section = declared.manifest.site
    patients: Patients | None = None
    try:
        path = site_file(folder, section.patients, "site.patients")
        patients, found = read_patients(path, str(folder / section.patients), section, study.label, splits)
    except InputError as error:
        found = list(error.problems)
    return Reading(folder, section, section.label or study.label.name, patients, splits), found


def read_modalities(
    entries: Collection[ModalityEntry], study: Study, reading: Reading
) -> tuple[dict[str, ModalityData], list[Problem]]:
    """The data of every modality that has no problem, and the problems of the others."""
    modalities: dict[str, ModalityData] = {}
    problems: list[Problem] = []
    for entry in entries:
        data, found = _read_entry(entry, study, reading)
        problems.extend(found)
        if data is not None:
            modalities[entry.name] = data
    return modalities, problems


def _read_entry(entry: ModalityEntry, study: Study, reading: Reading) -> tuple[ModalityData | None, list[Problem]]:
    try:
        return entry.read(study.modality(entry.name), reading)
    except InputError as error:
        return None, list(error.problems)


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


def unlisted(encoded: Mapping[str, AnyPreprocessing], listed: Collection[str]) -> dict[str, ModalityData]:
    """The encoded modalities that a folder lacks: their encoders are in the model, and nobody's values."""
    nobody = torch.zeros(0, dtype=torch.bool)
    return {
        name: ModalityData(preprocessing, {}, torch.zeros(0, *preprocessing.shape), nobody)
        for name, preprocessing in encoded.items()
        if name not in listed
    }


def cohort_of(ids: Sequence[str], patients: Patients, modalities: Mapping[str, ModalityData], study: Study) -> Cohort:
    """The tensors of the given patients, in this order."""
    observed_BM = torch.zeros(len(ids), len(study.modalities), dtype=torch.bool)
    inputs = {}
    for name, data in modalities.items():
        inputs[name], observed_BM[:, study.modality_names.index(name)] = data.select(ids)
    labels_B = torch.tensor([patients.labels[patient] for patient in ids], dtype=torch.int64)
    return Cohort(inputs, observed_BM, labels_B)
