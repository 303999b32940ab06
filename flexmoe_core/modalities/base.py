"""What every kind of modality declares in study.toml, and what its inputs are made by."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal

from flexmoe_core.validation import Finding, FrozenModel, SafeName


class Preprocessing(FrozenModel):
    """What turned a modality's values into a site's tensors: with it new patients are encoded alike.

    Each kind has its own, which is kept as JSON in the site's cache and bundle.
    """

    kind: str

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """One patient's input, without the axis of patients."""


class Modality(FrozenModel, populate_by_name=True):
    """A group of data that a patient has or lacks as a whole.

    With a ``shared`` encoder the study fixes what a value means, so that it means the same everywhere; with a
    ``local`` one each hospital's files do, and it keeps the encoder to itself.
    """

    name: SafeName
    kind: str
    encoder: Literal["shared", "local"]

    @property
    @abstractmethod
    def contents(self) -> str:
        """What the study fixes of a patient's values, in a few words; empty for a local encoder."""

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """What the study fixes of the inputs. Raises ValueError for a local encoder: only its site knows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One patient's input. Raises ValueError for a local encoder: only its site knows."""
        return self.preprocessing.shape

    def _only_its_site_knows(self) -> ValueError:
        return ValueError(f"the inputs of the local modality '{self.name}' are known at its site only")

    def _key_findings(self, key: str, given: bool, local_remedy: str) -> Iterator[Finding]:
        """What is wrong about a key that a shared encoder needs and a local one may not have."""
        if self.encoder == "shared" and not given:
            yield Finding("is missing", "Declare it: the encoder is shared.", key)
        if self.encoder == "local" and given:
            yield Finding("is not allowed with a local encoder", local_remedy, key)
