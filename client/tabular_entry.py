"""What site.toml says of a table: which of its columns stand for which of the study's, or what its own are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from client.manifest import LocalName
from client.modality_entry import OTHER_SCALE, OneFileEntry
from client.tables import canonical
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.registry import AnyPreprocessing
from flexmoe_core.modalities.scale import Range, typical_findings
from flexmoe_core.modalities.sequence import SequencePreprocessing
from flexmoe_core.modalities.tabular import (
    CategoricalColumn,
    Column,
    ColumnsModality,
    NumericColumn,
    TabularPreprocessing,
    Words,
)
from flexmoe_core.validation import Finding, FrozenModel, SafeName, raise_if_any, repeated, suggestion


def _spelling(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise_if_any([Finding("is neither a text nor a number", "Write it as it stands in the file.")])
    return canonical((str(value).lower() if isinstance(value, bool) else str(value)).strip())


def _long_form(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


Spelling = Annotated[str, BeforeValidator(_spelling)]


class ColumnMap(FrozenModel):
    """Where a study column stands in the site's file, and how its cells are spelled.

    ``missing`` holds further spellings of a missing cell; ``values`` gives the category of a local spelling.
    """

    column: LocalName | None = None
    missing: tuple[Spelling, ...] = ()
    values: dict[str, str] = Field(default_factory=dict)


class LocalNumericColumn(ColumnMap):
    """A measurement of a local encoder: its scale is that of ``typical`` or ``range``, or else of the site's
    training patients.
    """

    type: Literal["numeric"] = "numeric"
    name: SafeName
    unit: str = ""
    range: Range | None = None
    typical: Range | None = None

    @model_validator(mode="after")
    def _typical_is_plausible(self) -> Self:
        raise_if_any(typical_findings(self.typical, self.range))
        return self


class LocalCategoricalColumn(ColumnMap):
    """A categorical column of a local encoder."""

    type: Literal["categorical"] = "categorical"
    name: SafeName
    categories: Annotated[Words, Field(min_length=1)]


LocalColumn = Annotated[LocalNumericColumn | LocalCategoricalColumn, Field(discriminator="type")]


class TableEntry(OneFileEntry):
    """An entry of a kind that reads columns of a table: their map (shared encoder) or definitions (local encoder)."""

    missing: tuple[Spelling, ...] = ()
    columns: dict[str, Annotated[ColumnMap, BeforeValidator(_long_form)]] = Field(default_factory=dict)
    definitions: tuple[LocalColumn, ...] = Field(default=(), alias="column")

    @model_validator(mode="after")
    def _definitions_differ(self) -> TableEntry:
        names = [column.name for column in self.definitions]
        raise_if_any(Finding("is named twice", "Rename one.", f"column.{name}") for name in repeated(names))
        return self

    def undeclared_ranges(self, modality: Modality) -> Iterator[str]:
        """Those of its own numeric columns."""
        if modality.encoder == "local":
            for column in self.definitions:
                if isinstance(column, LocalNumericColumn) and column.range is None:
                    yield f"column.{column.name}.range"

    def findings(self, modality: Modality, known: AnyPreprocessing | None = None) -> Iterator[Finding]:
        """Columns that do not fit the study's, or those of a trained local encoder."""
        assert isinstance(modality, ColumnsModality)
        if modality.encoder == "shared":
            if self.definitions:
                remedy = "Map the study's columns in [modality.columns]: its encoder is shared."
                yield Finding("defines columns that the study already defines", remedy, "column")
            yield from _map_findings(self, modality.columns, "the study")
        elif known is None:
            yield from _local_findings(self)
        elif self.definitions:
            yield from _local_findings(self)
            yield from _known_findings(self.definitions, known_columns(known))
        else:
            yield from _map_findings(self, known_columns(known), "the bundle")


def known_columns(known: AnyPreprocessing) -> tuple[Column, ...]:
    """The columns that a trained encoder of a table or sequence takes, in its order."""
    assert isinstance(known, TabularPreprocessing | SequencePreprocessing)
    return known.columns


def _local_findings(entry: TableEntry) -> Iterator[Finding]:
    if entry.columns:
        remedy = "Define its columns with [[modality.column]]: its encoder is local."
        yield Finding("maps columns that the study does not define", remedy, "columns")
    if not entry.definitions:
        yield Finding("is missing", "Define the columns of the local encoder.", "column")
    for definition in entry.definitions:
        categories = definition.categories if isinstance(definition, LocalCategoricalColumn) else None
        yield from _value_findings(definition, categories, f"column.{definition.name}")


def _map_findings(entry: TableEntry, defined: Sequence[Column], definer: str) -> Iterator[Finding]:
    columns = {column.name: column for column in defined}
    for name, entry_map in entry.columns.items():
        place = f"columns.{name}"
        if name in columns:
            column = columns[name]
            categories = column.categories if isinstance(column, CategoricalColumn) else None
            yield from _value_findings(entry_map, categories, place)
        else:
            yield Finding(f"is not a column of {definer}", suggestion(name, list(columns)), place)


def _value_findings(entry_map: ColumnMap, categories: tuple[str, ...] | None, place: str) -> Iterator[Finding]:
    if categories is None and entry_map.values:
        yield Finding("is for categorical columns only", "Remove it.", f"{place}.values")
    elif categories is not None:
        for category in dict.fromkeys(entry_map.values.values()):
            if category not in categories:
                what = f"leads to the unknown category '{category}'"
                yield Finding(what, suggestion(category, categories), f"{place}.values")


def _known_findings(definitions: Sequence[LocalColumn], columns: Sequence[Column]) -> Iterator[Finding]:
    """Definitions that are not those of the columns that the local encoder was trained with."""
    trained = {column.name: column for column in columns}
    for definition in definitions:
        if definition.name in trained:
            yield from _definition_findings(definition, trained[definition.name])
        else:
            what, remedy = "is not a column of the bundle", suggestion(definition.name, list(trained))
            yield Finding(what, remedy, f"column.{definition.name}")
    for name in trained:
        if name not in {definition.name for definition in definitions}:
            remedy = "Define it: the bundle was made with it. Its cells may be empty."
            yield Finding("is missing", remedy, f"column.{name}")


def _definition_findings(definition: LocalColumn, column: Column) -> Iterator[Finding]:
    place = f"column.{definition.name}"
    if isinstance(definition, LocalCategoricalColumn) and isinstance(column, CategoricalColumn):
        if set(definition.categories) != set(column.categories):
            remedy = f"Write those of the bundle: {', '.join(column.categories)}."
            yield Finding("are not those that the bundle was made with", remedy, f"{place}.categories")
    elif isinstance(definition, LocalNumericColumn) and isinstance(column, NumericColumn):
        if definition.unit != column.unit:
            remedy = f"Bring the values into '{column.unit}'." if column.unit else "Remove it: the bundle has none."
            yield Finding("is not the unit that the bundle was made with", remedy, f"{place}.unit")
        if definition.range not in (None, column.range):
            yield Finding(OTHER_SCALE.what, OTHER_SCALE.remedy, f"{place}.range")
        if definition.typical not in (None, column.typical):
            yield Finding(OTHER_SCALE.what, OTHER_SCALE.remedy, f"{place}.typical")
    else:
        yield Finding(f"is {definition.type}, but {column.type} in the bundle", "Correct it.", f"{place}.type")
