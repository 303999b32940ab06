"""Scores in a masked vector: only their sum over sites is ever told, without combinations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from flexmoe_core.errors import MaskingRefused
from flexmoe_core.naming import under_prefix, with_prefix
from flexmoe_core.scores import MAXIMUM_PATIENTS, Scores


def score_blocks(splits: Iterable[str], classes: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the blocks that hold the scores of some splits."""
    empty = Scores.empty(classes).to_arrays()
    return tuple((f"{split}/{name}", values.shape) for split in splits for name, values in empty.items())


def codes_of_scores(split: str, scores: Scores, sites: int) -> dict[str, NDArray[np.int64]]:
    """One site's scores as blocks. Raises MaskingRefused where sums over so many sites could wrap around."""
    if scores.n * sites > MAXIMUM_PATIENTS:
        most = MAXIMUM_PATIENTS // sites
        raise MaskingRefused(f"scores of more than {most} patients cannot be summed over {sites} sites")
    return with_prefix(split, scores.to_arrays())


def scores_of_sum(split: str, blocks: Mapping[str, NDArray[np.int64]], classes: int) -> Scores | None:
    """The summed scores; None where no site had patients. Raises MessageError where they contradict one another."""
    scores = Scores.from_arrays(under_prefix(split, blocks), classes)
    return scores if scores.n else None
