"""The kinds of modality that a study can declare, told apart by their key ``kind``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flexmoe_core.modalities.embedding import EmbeddingModality, EmbeddingPreprocessing
from flexmoe_core.modalities.sequence import SequenceModality, SequencePreprocessing
from flexmoe_core.modalities.tabular import TabularModality, TabularPreprocessing
from flexmoe_core.modalities.volume import VolumeModality, VolumePreprocessing

AnyModality = Annotated[
    TabularModality | EmbeddingModality | VolumeModality | SequenceModality, Field(discriminator="kind")
]
AnyPreprocessing = Annotated[
    TabularPreprocessing | EmbeddingPreprocessing | VolumePreprocessing | SequencePreprocessing,
    Field(discriminator="kind"),
]
