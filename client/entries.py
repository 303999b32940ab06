"""The modalities of a site.toml, each read by the entry of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from client.embedding import EmbeddingEntry
from client.manifest import MANIFEST_FILE, Manifest, PatientsManifest
from client.modality_entry import ModalityEntry
from client.sequence import SequenceEntry
from client.tabular import TabularEntry
from client.volume import VolumeEntry
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.study import Study
from flexmoe_core.validation import Finding, parse_toml, suggestion, validate

ENTRIES: Mapping[str, type[ModalityEntry]] = MappingProxyType(
    {"tabular": TabularEntry, "embedding": EmbeddingEntry, "volume": VolumeEntry, "sequence": SequenceEntry}
)


ManifestT = TypeVar("ManifestT", bound=PatientsManifest)


@dataclass(frozen=True)
class SiteManifest(Generic[ManifestT]):
    """A site.toml with the entries of those of its modalities that the study has, in the study's order."""

    manifest: ManifestT
    entries: tuple[ModalityEntry, ...]

    def files(self, folder: Path) -> tuple[str, ...]:
        """The names of all data files. May raise InputError or OSError."""
        return self.manifest.site.patients, *(name for entry in self.entries for name in entry.files(folder))


def read_site_manifest(folder: Path, study: Study) -> SiteManifest[Manifest]:
    """The site.toml of a hospital that takes part. Raises InputError with every problem of its keys."""
    return read_manifest_as(Manifest, folder, study)


def read_manifest_as(model: type[ManifestT], folder: Path, study: Study) -> SiteManifest[ManifestT]:
    """The site.toml of a folder, whose sections are those of ``model``. Raises InputError with every problem."""
    file = str(folder / MANIFEST_FILE)
    sections = parse_toml(folder / MANIFEST_FILE)
    problems: list[Problem] = []
    entries = []
    for name, keys in _known(sections, study).items():
        try:
            entries.append(validate(keys, ENTRIES[study.modality(name).kind], file, f"modality.{name}"))
        except InputError as error:
            problems.extend(error.problems)
    try:
        manifest = validate(sections, model, file)
    except InputError as error:
        raise InputError([*error.problems, *problems]) from None
    if problems:
        raise InputError(problems)
    return SiteManifest(manifest, tuple(entries))


def study_problems(declared: SiteManifest[Manifest], study: Study, file: str) -> list[Problem]:
    """Everything in which a manifest does not fit the study; ``file`` names the manifest."""
    problems = modality_problems(declared, study, file)
    if declared.manifest.public.full_modality and len(declared.manifest.modalities) < len(study.modalities):
        what, remedy = "is true, but the site lacks a modality", "Set it to false, or list every modality."
        problems.append(Problem(file, "public.full_modality", what, remedy))
    return problems


def modality_problems(
    declared: SiteManifest[ManifestT], study: Study, file: str, known: Mapping[str, AnyPreprocessing] | None = None
) -> list[Problem]:
    """Modalities of a manifest that do not fit the study nor, where ``known``, what made a model's inputs."""
    findings: list[Finding] = []
    by_name = {entry.name: entry for entry in declared.entries}
    for listed in declared.manifest.modalities:
        place = f"modality.{listed.name}"
        if listed.name not in by_name:
            remedy = suggestion(listed.name, study.modality_names)
            findings.append(Finding("is not a modality of the study", remedy, place))
        elif known is not None and listed.name not in known:
            remedy = "Remove it, or use the bundle of a site that has it."
            findings.append(Finding("has a local encoder, and none is in the bundle", remedy, place))
        else:
            fixed = known[listed.name] if known is not None else None
            found = by_name[listed.name].findings(study.modality(listed.name), fixed)
            findings.extend(finding._replace(place=f"{place}.{finding.place}") for finding in found)
    return [Problem(file, finding.place, finding.what, finding.remedy) for finding in findings]


def fitted_scales(declared: SiteManifest[Manifest], study: Study) -> tuple[str, ...]:
    """The keys of a manifest that are not declared, so that a scale is fitted to training patients in their place."""
    return tuple(
        f"modality.{entry.name}.{key}"
        for entry in declared.entries
        for key in entry.undeclared_ranges(study.modality(entry.name))
    )


def require_declared_scales(declared: SiteManifest[Manifest], study: Study, file: str) -> None:
    """Raise InputError with every scale that would be fitted to patients; ``file`` names the manifest."""
    what = "is not declared: its scale would be fitted to patients, which patient-level privacy does not allow"
    problems = []
    for place in fitted_scales(declared, study):
        key = place.rpartition(".")[2]
        remedy = f"Declare {key} = [low, high] from knowledge, not from these patients."
        problems.append(Problem(file, place, what, remedy))
    if problems:
        raise InputError(problems)


def _known(sections: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """The tables of modalities that the study has, by name, in the study's order."""
    listed = sections.get("modality")
    tables = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    by_name = {one["name"]: one for one in tables if isinstance(one.get("name"), str)}
    return {name: by_name[name] for name in study.modality_names if name in by_name}
