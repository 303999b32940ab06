"""Tables: numeric and categorical columns, each with its missing flag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from flexmoe_core.modalities.base import Modality, Preprocessing
from flexmoe_core.modalities.scale import Range, typical_findings
from flexmoe_core.validation import Finding, FrozenModel, SafeName, raise_if_any, repeated


def _distinct_words(words: tuple[str, ...]) -> tuple[str, ...]:
    findings = [Finding(f"lists '{word}' twice", "Remove one.") for word in repeated(words)]
    if any(word != word.strip() or not word for word in words):
        findings.append(Finding("has an entry that is empty or begins or ends with a space", "Correct it."))
    raise_if_any(findings)
    return words


Words = Annotated[tuple[str, ...], AfterValidator(_distinct_words)]


class NumericColumn(FrozenModel):
    """A measurement, with the plausible range that its scale comes from, unless typical limits are given."""

    type: Literal["numeric"] = "numeric"
    name: SafeName
    unit: str = ""
    range: Range
    typical: Range | None = None

    @property
    def width(self) -> int:
        """Number of features: the scaled value and the missing flag."""
        return 2

    @model_validator(mode="after")
    def _typical_is_plausible(self) -> Self:
        raise_if_any(typical_findings(self.typical, self.range))
        return self


class CategoricalColumn(FrozenModel):
    """One of some named categories."""

    type: Literal["categorical"] = "categorical"
    name: SafeName
    categories: Annotated[Words, Field(min_length=1)]

    @property
    def width(self) -> int:
        """Number of features: one per category, and the missing flag."""
        return len(self.categories) + 1


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="type")]


class TabularPreprocessing(Preprocessing):
    """The columns behind the features; those of a local encoder carry the scale of its site."""

    kind: Literal["tabular"] = "tabular"
    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(F,): the features of all columns."""
        return (sum(column.width for column in self.columns),)


class ColumnsModality(Modality):
    """Named columns; each hospital of a local encoder declares its own in site.toml."""

    columns: tuple[Column, ...] = Field(default=(), alias="column")

    @property
    def contents(self) -> str:
        """The names of the columns."""
        return ", ".join(column.name for column in self.columns)

    @model_validator(mode="after")
    def _keys_fit_encoder(self) -> Self:
        raise_if_any(self._findings())
        return self

    def _findings(self) -> Iterator[Finding]:
        for name in repeated([column.name for column in self.columns]):
            yield Finding("is named twice", "Rename one.", f"column.{name}")
        remedy = "Move it to the site.toml of each hospital, or make the encoder shared."
        yield from self._key_findings("column", bool(self.columns), remedy)


class TabularModality(ColumnsModality):
    """A table with one row per patient."""

    kind: Literal["tabular"] = "tabular"

    @property
    def preprocessing(self) -> TabularPreprocessing:
        """The study's columns. Raises ValueError for a local encoder."""
        if self.encoder == "local":
            raise self._only_its_site_knows()
        return TabularPreprocessing(columns=self.columns)
