"""site.toml: who a hospital is, and which modalities it has. What it says of each depends on the modality's kind.

Everything in it is declared by hand before any patient is read; the `[public]` facts may leave the site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StrictBool, model_validator

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import Finding, FrozenModel, SafeName, raise_if_any, read_toml, repeated

MANIFEST_FILE = "site.toml"
NO_FILE = Finding("names no file", "Add the file or correct the name.")


def _column_name(name: str) -> str:
    if not name.strip():
        raise_if_any([Finding("is empty", "Write the name of a column.")])
    return name.strip()


def _one_significant_figure(count: int) -> int:
    if count != round(count, 1 - len(str(count))):
        remedy = "Round it, as in 300 for 317: the exact number never leaves the site."
        raise_if_any([Finding("has more than one significant figure", remedy)])
    return count


LocalName = Annotated[str, AfterValidator(_column_name)]


class SiteSection(FrozenModel):
    """The site's name and its patients file; ``label`` defaults to the study's name of the label."""

    name: SafeName
    id: LocalName
    patients: str
    label: LocalName | None = None
    split: LocalName = "split"


class PublicFacts(FrozenModel):
    """What the coordinator may know: a rounded size, and whether some patients have every modality."""

    patients: Annotated[int, Field(strict=True, ge=1, le=10**12), AfterValidator(_one_significant_figure)]
    full_modality: StrictBool


class ListedModality(FrozenModel, extra="allow"):
    """A modality that the site has. Its other keys are for the entry of its kind, which only the study knows."""

    name: SafeName


class PatientsManifest(FrozenModel):
    """What any site.toml says of a folder's patients and their files."""

    site: SiteSection
    modalities: Annotated[tuple[ListedModality, ...], Field(alias="modality", min_length=1)]

    @model_validator(mode="after")
    def _modalities_differ(self) -> Self:
        names = [entry.name for entry in self.modalities]
        raise_if_any(Finding("is listed twice", "Remove one.", f"modality.{name}") for name in repeated(names))
        return self


class Manifest(PatientsManifest):
    """A whole site.toml of a hospital that takes part."""

    public: PublicFacts


class NewPatientsManifest(PatientsManifest):
    """The site.toml of new patients: nothing leaves the site, so there need be nothing to announce."""

    public: PublicFacts | None = None


def read_manifest(folder: Path) -> Manifest:
    """The site.toml of a site folder, the keys of its modalities unread. Raises InputError with every problem."""
    return read_toml(folder / MANIFEST_FILE, Manifest)


def site_file(folder: Path, name: str, place: str) -> Path:
    """The path of a file that the manifest names at ``place``.

    Raises InputError unless it is a file inside the site folder, links followed.
    """
    path = file_inside(folder, name)
    if isinstance(path, Finding):
        what = f"{path.what}: '{name}'" if path == NO_FILE else path.what
        raise InputError([Problem(str(folder / MANIFEST_FILE), place, what, path.remedy)])
    return path


def file_inside(folder: Path, name: str) -> Path | Finding:
    """The path of a file inside the folder, links followed, or what is wrong with its name."""
    try:
        path = (folder / name).resolve()
        inside, is_file = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError):  # endless names, circular links, a zero byte
        return Finding("is not a path", "Correct it.")
    if not inside:
        remedy = "Move the file into the site folder; links may not lead out of it either."
        return Finding("is outside the site folder", remedy)
    if not is_file:
        return NO_FILE
    return path
