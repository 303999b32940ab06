"""Embeddings: one precomputed vector per patient, such as an image model's or a language model's.

Shapes: B patients, F numbers of the vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from flexmoe_core.modalities.base import Modality, Preprocessing
from flexmoe_core.modalities.scale import Range, fitted_range, scaled
from flexmoe_core.validation import Finding, raise_if_any

LONGEST_VECTOR = 65_536

Size = Annotated[int, Field(strict=True, ge=1, le=LONGEST_VECTOR)]


class EmbeddingPreprocessing(Preprocessing):
    """The range of each number of the vector: its limits become -2 and +2, and nothing is clipped."""

    kind: Literal["embedding"] = "embedding"
    ranges: tuple[Range, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(F,): the numbers of the vector."""
        return (len(self.ranges),)

    def encode(self, values_BF: Tensor) -> Tensor:
        """(B, F) float64 as they stand in the file to (B, F) float32 on the model's scale."""
        low_F, high_F = torch.tensor(self.ranges, dtype=torch.float64).unbind(dim=1)
        return scaled(values_BF, (low_F, high_F)).float()

    @classmethod
    def fitted(cls, values_BF: Tensor) -> EmbeddingPreprocessing:
        """A local encoder's, which standardizes each number over these training patients (float64, maybe none)."""
        return cls(ranges=tuple(fitted_range(values_B) for values_B in values_BF.unbind(dim=1)))


class EmbeddingModality(Modality):
    """Vectors of one length; for a local encoder length and scale come from the site.

    Either one ``range`` for all numbers or ``ranges``, one for each, where their scales differ.
    """

    kind: Literal["embedding"] = "embedding"
    size: Size | None = None
    range: Range | None = None
    ranges: tuple[Range, ...] | None = None

    @property
    def contents(self) -> str:
        """The length of the vector."""
        return "" if self.size is None else f"{self.size} numbers"

    @property
    def preprocessing(self) -> EmbeddingPreprocessing:
        """The range of each number. Raises ValueError for a local encoder."""
        if self.ranges is not None:
            return EmbeddingPreprocessing(ranges=self.ranges)
        if self.size is None or self.range is None:
            raise self._only_its_site_knows()
        return EmbeddingPreprocessing(ranges=(self.range,) * self.size)

    @model_validator(mode="after")
    def _keys_fit_encoder(self) -> EmbeddingModality:
        in_file = "Remove it: the site's own file says it. Or make the encoder shared."
        findings = list(self._key_findings("size", self.size is not None, in_file))
        scale = "range" if self.ranges is None else "ranges"
        given = self.range is not None or self.ranges is not None
        remedy = "Move it to the site.toml of each hospital, or make the encoder shared."
        findings += self._key_findings(scale, given, remedy)
        if self.ranges is not None:
            findings += self._range_findings(len(self.ranges))
        raise_if_any(findings)
        return self

    def _range_findings(self, count: int) -> Iterator[Finding]:
        if self.range is not None:
            yield Finding("cannot stand beside ranges", "Keep one of the two.", "range")
        if self.size is not None and count != self.size:
            yield Finding(f"are {count}, but the size is {self.size}", "Give one for each number.", "ranges")
