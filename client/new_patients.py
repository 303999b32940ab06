"""A folder of new patients as the tensors that a bundle's model takes, or as every problem in it.

The folder has the form of a site folder. Labels are never read, and all scales are the bundle's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.bundle import BundleFacts
from client.entries import SiteManifest, modality_problems, read_manifest_as
from client.manifest import MANIFEST_FILE, NewPatientsManifest, file_inside, site_file
from client.modality_entry import Reading
from client.patients import NEW, Patients, read_new_patients
from client.site_data import cohort_of, read_modalities, unlisted
from flexmoe_core.cohort import Cohort
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import Study, load_study

STUDY_FILE = "study.toml"


@dataclass(frozen=True)
class NewPatients:
    """Patients to be predicted, in file order: their ids, the name of the column of ids, and their tensors.

    ``manifest`` is the site.toml as the user knows it, ``files`` are all files that the folder names.
    """

    manifest: str
    id_column: str
    ids: tuple[str, ...]
    cohort: Cohort
    files: frozenset[Path]


def read_folder(folder: Path, facts: BundleFacts, split: str | None = None) -> NewPatients:
    """All patients of the folder, or those of one split. Raises InputError with every problem.

    Modalities of the bundle that the folder does not list are those that its patients lack.
    """
    study, known = facts.terms.study, facts.preprocessing
    declared = read_manifest_as(NewPatientsManifest, folder, study)
    manifest = str(folder / MANIFEST_FILE)
    problems = modality_problems(declared, study, manifest, known) + _study_problems(folder, declared, study)
    patients, found = _read_patients(folder, declared, split)
    problems.extend(found)
    section = declared.manifest.site
    label = section.label or study.label.name
    reading = Reading(folder, section, label, patients, (split or NEW,), known)
    entries = [entry for entry in declared.entries if entry.name in known]
    modalities, found = read_modalities(entries, study, reading)
    problems.extend(found)
    if problems or patients is None:
        raise InputError(problems)
    ids = patients.of(split or NEW)
    cohort = cohort_of(ids, patients, modalities | unlisted(known, modalities), study)
    files = {path for name in declared.files(folder) if isinstance(path := file_inside(folder, name), Path)}
    return NewPatients(manifest, section.id, ids, cohort, frozenset(files))


def _read_patients(
    folder: Path, declared: SiteManifest[NewPatientsManifest], split: str | None
) -> tuple[Patients | None, list[Problem]]:
    section = declared.manifest.site
    try:
        path = site_file(folder, section.patients, "site.patients")
        return read_new_patients(path, str(folder / section.patients), section, split)
    except InputError as error:
        return None, list(error.problems)


def _study_problems(folder: Path, declared: SiteManifest[NewPatientsManifest], study: Study) -> list[Problem]:
    """Modalities that a study.toml in the folder declares otherwise than the bundle's study."""
    path = folder / STUDY_FILE
    if not path.is_file():
        return []
    try:
        theirs = {modality.name: modality for modality in load_study(path).modalities}
    except InputError as error:
        return list(error.problems)
    remedy = "Use a bundle of this study, or the study.toml of the run that made the bundle."
    return [
        Problem(str(path), f"modality.{entry.name}", "is not declared as in the bundle", remedy)
        for entry in declared.entries
        if theirs.get(entry.name) != study.modality(entry.name)
    ]
