"""Names of arrays that travel or are stored together: ``part/name``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def with_prefix(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays under ``prefix/``."""
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def under_prefix(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names start with ``prefix/``, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in arrays.items() if name.startswith(start)}
