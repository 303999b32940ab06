"""Tabular encoder: values, missing flags and one-hot categories of one modality to P tokens.

Shapes: B patients, F features, P tokens, D width.
"""

from __future__ import annotations

from flexmoe_core.encoders.projection import ProjectionEncoder
from flexmoe_core.settings import ModelSettings


def build_tabular(shape: tuple[int, ...], settings: ModelSettings) -> ProjectionEncoder:
    """The encoder of inputs (B, F).

    A projection rather than patches of the feature vector: the order of a table's columns means nothing.
    """
    (features,) = shape
    return ProjectionEncoder(
        features, settings.tokens, settings.width, settings.encoder_hidden, settings.encoder_dropout
    )
