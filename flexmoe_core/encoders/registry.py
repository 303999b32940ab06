"""Which encoder reads which kind of modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from flexmoe_core.encoders.embedding import build_embedding
from flexmoe_core.encoders.sequence import build_sequence
from flexmoe_core.encoders.tabular import build_tabular
from flexmoe_core.encoders.volume import build_volume
from flexmoe_core.settings import ModelSettings

EncoderBuilder = Callable[[tuple[int, ...], ModelSettings], nn.Module]

ENCODERS: Mapping[str, EncoderBuilder] = MappingProxyType(
    {"tabular": build_tabular, "embedding": build_embedding, "volume": build_volume, "sequence": build_sequence}
)


def build_encoder(kind: str, shape: tuple[int, ...], settings: ModelSettings) -> nn.Module:
    """The encoder of one modality, whose patients have inputs of this shape: (B, *shape), generator -> (B, P, D)."""
    return ENCODERS[kind](shape, settings)
