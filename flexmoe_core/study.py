"""study.toml: what all hospitals of a study agree on. The coordinator owns it and sends it to every site.

A combination of modalities is an int bitmask: bit m is the study's modality m.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import Field, model_validator

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.registry import AnyModality
from flexmoe_core.modalities.tabular import Words
from flexmoe_core.validation import (
    Finding,
    FrozenModel,
    SafeName,
    raise_if_any,
    read_toml,
    repeated,
    suggestion,
    validate,
)

MOST_MODALITIES = 62  # a combination is a bitmask in an int64


class Label(FrozenModel):
    """What is predicted; the order of the classes is that of the model's outputs."""

    name: SafeName
    classes: Annotated[Words, Field(min_length=2)]


class Study(FrozenModel):
    """A study: its label, its modalities in order, and the combinations that were agreed on, if any."""

    name: SafeName
    label: Label
    modalities: tuple[AnyModality, ...]
    combinations: tuple[tuple[str, ...], ...] = ()

    @property
    def modality_names(self) -> tuple[str, ...]:
        """The names of the modalities, in order."""
        return tuple(modality.name for modality in self.modalities)

    @property
    def local_modalities(self) -> tuple[str, ...]:
        """The names of the modalities whose encoders never leave their site, in order."""
        return tuple(modality.name for modality in self.modalities if modality.encoder == "local")

    @property
    def full_mask(self) -> int:
        """The combination of all modalities."""
        return (1 << len(self.modalities)) - 1

    def modality(self, name: str) -> Modality:
        """The modality of that name. Raises ValueError when the study has none."""
        return self.modalities[self.modality_names.index(name)]

    def mask_of(self, names: Iterable[str]) -> int:
        """The combination of the named modalities. Raises ValueError for a name that the study lacks."""
        return sum(1 << self.modality_names.index(name) for name in set(names))

    def names_of(self, mask: int) -> tuple[str, ...]:
        """The modalities of a combination, in order. Raises ValueError for a mask of other modalities."""
        if not 0 <= mask <= self.full_mask:
            raise ValueError(f"{mask} is no combination of {len(self.modalities)} modalities")
        return tuple(name for place, name in enumerate(self.modality_names) if mask >> place & 1)

    def to_toml(self) -> str:
        """The text of a study.toml that loads as an equal study."""
        sections: dict[str, object] = {
            "study": {"name": self.name},
            "label": self.label.model_dump(),
            "modality": [_modality_section(modality) for modality in self.modalities],
        }
        if self.combinations:
            sections["combination"] = [{"modalities": names} for names in self.combinations]
        return tomli_w.dumps(sections)

    def to_json(self) -> str:
        """The study as it travels to the sites: equal studies have equal text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Study:
        """The study that ``to_json`` wrote. Raises InputError with every problem."""
        source = "study (as received)"
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError([Problem(source, "", "is not valid JSON", "Send it again.")]) from None
        return validate(fields, cls, source)

    @model_validator(mode="after")
    def _modalities_agree(self) -> Study:
        raise_if_any([*_modality_findings(self.modality_names), *self._combination_findings()])
        return self

    def _combination_findings(self) -> Iterator[Finding]:
        for place, names in enumerate(self.combinations):
            where = f"combination.#{place + 1}"
            if not names:
                yield Finding("is empty", "Name at least one modality.", where)
            for name in repeated(names):
                yield Finding(f"names '{name}' twice", "Remove one.", where)
            for name in names:
                if name not in self.modality_names:
                    yield Finding(
                        f"names the unknown modality '{name}'", suggestion(name, self.modality_names), where
                    )
            if any(set(names) == set(earlier) for earlier in self.combinations[:place]):
                yield Finding("repeats an earlier combination", "Remove it.", where)


class _StudySection(FrozenModel):
    name: SafeName


class _CombinationSection(FrozenModel):
    modalities: tuple[str, ...]


class _StudyFile(FrozenModel):
    """The sections of study.toml."""

    study: _StudySection
    label: Label
    modality: tuple[AnyModality, ...]
    combination: tuple[_CombinationSection, ...] = ()


def load_study(path: Path) -> Study:
    """The study in a study.toml. Raises InputError with every problem."""
    sections = read_toml(path, _StudyFile)
    fields = {
        "name": sections.study.name,
        "label": sections.label,
        "modalities": sections.modality,
        "combinations": tuple(combination.modalities for combination in sections.combination),
    }
    return validate(fields, Study, str(path))


def _modality_section(modality: Modality) -> dict[str, object]:
    """Its keys, without those that are not given: TOML has no null."""
    section = modality.model_dump(by_alias=True, exclude_none=True)
    return {key: value for key, value in section.items() if value != ()}


def _modality_findings(names: tuple[str, ...]) -> Iterator[Finding]:
    if not 1 <= len(names) <= MOST_MODALITIES:
        yield Finding(f"lists {len(names)} modalities", f"List 1 to {MOST_MODALITIES}.", "modality")
    for name in repeated(names):
        yield Finding("is named twice", "Rename one.", f"modality.{name}")
