"""Projection of a row of numbers to P tokens.

Shapes: B patients, F features, P tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from flexmoe_core.chance import Chance
from flexmoe_core.dropout import dropout


class ProjectionEncoder(nn.Module):
    """One projection of all features to all tokens, optionally through a hidden layer."""

    def __init__(self, features: int, tokens: int, width: int, hidden: int, rate: float) -> None:
        super().__init__()
        self.tokens, self.width, self.rate = tokens, width, rate
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.projection = nn.Linear(hidden or features, tokens * width)

    def forward(self, x_BF: Tensor, generator: Chance | None) -> Tensor:
        """(B, F) float32 to (B, P, D); B may be 0."""
        if self.hidden is not None:
            x_BF = dropout(nn.functional.gelu(self.hidden(x_BF)), self.rate, generator)
        tokens: Tensor = self.projection(x_BF)
        return tokens.reshape(-1, self.tokens, self.width)
