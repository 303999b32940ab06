"""Embedding encoder: a precomputed vector to P tokens.

Shapes: B patients, F features, P tokens, D width.
"""

from __future__ import annotations

from flexmoe_core.encoders.projection import ProjectionEncoder
from flexmoe_core.settings import ModelSettings


def build_embedding(shape: tuple[int, ...], settings: ModelSettings) -> ProjectionEncoder:
    """The encoder of inputs (B, F).

    A projection rather than patches of the vector: an embedding spreads what it says over all of its numbers.
    """
    (features,) = shape
    return ProjectionEncoder(
        features, settings.tokens, settings.width, settings.encoder_hidden, settings.encoder_dropout
    )
