"""site.toml: which files a hospital has, and which of their columns stand for which of the study's.

Everything in it is declared by hand before any patient is read; the `[public]` facts may leave the site.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, model_validator

from client.tables import canonical
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import CategoricalColumn, Modality, Study, Words
from flexmoe_core.validation import (
    Finding,
    FrozenModel,
    SafeName,
    raise_if_any,
    read_toml,
    repeated,
    suggestion,
)

MANIFEST_FILE = "site.toml"


def _column_name(name: str) -> str:
    if not name.strip():
        raise_if_any([Finding("is empty", "Write the name of a column.")])
    return name.strip()


def _spelling(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise_if_any([Finding("is neither a text nor a number", "Write it as it stands in the file.")])
    return canonical((str(value).lower() if isinstance(value, bool) else str(value)).strip())


def _one_significant_figure(count: int) -> int:
    if count != round(count, 1 - len(str(count))):
        remedy = "Round it, as in 300 for 317: the exact number never leaves the site."
        raise_if_any([Finding("has more than one significant figure", remedy)])
    return count


def _long_form(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


LocalName = Annotated[str, AfterValidator(_column_name)]
Spelling = Annotated[str, BeforeValidator(_spelling)]


class ColumnMap(FrozenModel):
    """Where a study column stands in the site's file, and how its cells are spelled.

    ``missing`` holds further spellings of a missing cell; ``values`` gives the category of a local spelling.
    """

    column: LocalName | None = None
    missing: tuple[Spelling, ...] = ()
    values: dict[str, str] = Field(default_factory=dict)


class LocalNumericColumn(ColumnMap):
    """A measurement of a local encoder: its scale comes from the site's training patients."""

    type: Literal["numeric"] = "numeric"
    name: SafeName
    unit: str = ""


class LocalCategoricalColumn(ColumnMap):
    """A categorical column of a local encoder."""

    type: Literal["categorical"] = "categorical"
    name: SafeName
    categories: Annotated[Words, Field(min_length=1)]


LocalColumn = Annotated[LocalNumericColumn | LocalCategoricalColumn, Field(discriminator="type")]


class ModalityEntry(FrozenModel):
    """A modality that the site has: its file, and its columns' map (shared encoder) or definitions (local)."""

    name: SafeName
    file: str
    missing: tuple[Spelling, ...] = ()
    columns: dict[str, Annotated[ColumnMap, BeforeValidator(_long_form)]] = Field(default_factory=dict)
    definitions: tuple[LocalColumn, ...] = Field(default=(), alias="column")

    @model_validator(mode="after")
    def _definitions_differ(self) -> ModalityEntry:
        names = [column.name for column in self.definitions]
        raise_if_any(Finding("is named twice", "Rename one.", f"column.{name}") for name in repeated(names))
        return self


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


class Manifest(FrozenModel):
    """A whole site.toml."""

    site: SiteSection
    public: PublicFacts
    modalities: Annotated[tuple[ModalityEntry, ...], Field(alias="modality", min_length=1)]

    @model_validator(mode="after")
    def _modalities_differ(self) -> Manifest:
        names = [entry.name for entry in self.modalities]
        raise_if_any(Finding("is listed twice", "Remove one.", f"modality.{name}") for name in repeated(names))
        return self


def read_manifest(folder: Path) -> Manifest:
    """The site.toml of a site folder. Raises InputError with every problem."""
    return read_toml(folder / MANIFEST_FILE, Manifest)


def study_problems(manifest: Manifest, study: Study, file: str) -> list[Problem]:
    """Everything in which a manifest does not fit the study; ``file`` names the manifest."""
    findings: list[Finding] = []
    for entry in manifest.modalities:
        place = f"modality.{entry.name}"
        if entry.name not in study.modality_names:
            remedy = suggestion(entry.name, study.modality_names)
            findings.append(Finding("is not a modality of the study", remedy, place))
        else:
            findings.extend(
                finding._replace(place=f"{place}.{finding.place}")
                for finding in _entry_findings(entry, study.modality(entry.name))
            )
    if manifest.public.full_modality and len(manifest.modalities) < len(study.modalities):
        remedy = "Set it to false, or list every modality."
        findings.append(Finding("is true, but the site lacks a modality", remedy, "public.full_modality"))
    return [Problem(file, finding.place, finding.what, finding.remedy) for finding in findings]


def _entry_findings(entry: ModalityEntry, modality: Modality) -> Iterator[Finding]:
    if modality.encoder == "local":
        if entry.columns:
            remedy = "Define its columns with [[modality.column]]: its encoder is local."
            yield Finding("maps columns that the study does not define", remedy, "columns")
        if not entry.definitions:
            yield Finding("is missing", "Define the columns of the local encoder.", "column")
        for definition in entry.definitions:
            categories = definition.categories if isinstance(definition, LocalCategoricalColumn) else None
            yield from _value_findings(definition, categories, f"column.{definition.name}")
        return
    if entry.definitions:
        remedy = "Map the study's columns in [modality.columns]: its encoder is shared."
        yield Finding("defines columns that the study already defines", remedy, "column")
    columns = {column.name: column for column in modality.columns}
    for name, entry_map in entry.columns.items():
        place = f"columns.{name}"
        if name in columns:
            column = columns[name]
            categories = column.categories if isinstance(column, CategoricalColumn) else None
            yield from _value_findings(entry_map, categories, place)
        else:
            yield Finding("is not a column of the study", suggestion(name, list(columns)), place)


def _value_findings(entry_map: ColumnMap, categories: tuple[str, ...] | None, place: str) -> Iterator[Finding]:
    if categories is None and entry_map.values:
        yield Finding("is for categorical columns only", "Remove it.", f"{place}.values")
    elif categories is not None:
        for category in dict.fromkeys(entry_map.values.values()):
            if category not in categories:
                what = f"leads to the unknown category '{category}'"
                yield Finding(what, suggestion(category, categories), f"{place}.values")


def site_file(folder: Path, name: str, place: str) -> Path:
    """The path of a file that the manifest names at ``place``.

    Raises InputError unless it is a file inside the site folder, links followed.
    """
    manifest = str(folder / MANIFEST_FILE)
    try:
        path = (folder / name).resolve()
        inside, is_file = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError):  # endless names, circular links, a zero byte
        raise InputError([Problem(manifest, place, "is not a path", "Correct it.")]) from None
    if not inside:
        remedy = "Move the file into the site folder; links may not lead out of it either."
        raise InputError([Problem(manifest, place, "is outside the site folder", remedy)])
    if not is_file:
        raise InputError([Problem(manifest, place, f"names no file: '{name}'", "Add the file or correct the name.")])
    return path
