"""Which encoder reads which kind of modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from flexmoe_core.encoders.tabular import TabularEncoder
from flexmoe_core.settings import ModelSettings

EncoderBuilder = Callable[[int, ModelSettings], nn.Module]


def _tabular(features: int, settings: ModelSettings) -> nn.Module:
    return TabularEncoder(
        features, settings.tokens, settings.width, settings.encoder_hidden, settings.encoder_dropout
    )


ENCODERS: Mapping[str, EncoderBuilder] = MappingProxyType({"tabular": _tabular})


def build_encoder(kind: str, features: int, settings: ModelSettings) -> nn.Module:
    """The encoder of one modality: (B, F), generator -> (B, P, D)."""
    return ENCODERS[kind](features, settings)
