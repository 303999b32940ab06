"""Site-level privacy at the site: its whole delta, clipped, with weight one everywhere.

Weights that differ between sites would multiply the sensitivity of their mean (a site of many patients would be less
hidden than the noise says), and a weight that depends on the site's patients would itself give them away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flexmoe_core.privacy.calibration import site_noise_multiplier
from flexmoe_core.privacy.secret_source import SecretSource, noised
from flexmoe_core.privacy.settings import SecureAggregation, SitePrivacy
from flexmoe_core.secure_aggregation.bounds import smallest_sum
from flexmoe_core.update import TensorSpec, Update

ROUNDING = 1e-6
"""By what share the clipping stays below its bound, so that float32 cannot exceed it."""


def noise_share(privacy: SitePrivacy, rounds: int, masks: SecureAggregation, sites: int) -> float:
    """Standard deviation of what each of so many sites adds where nobody sees a single update.

    What the honest sites of the smallest sum have added is enough: those who collude know their own part of it.
    """
    return site_noise_multiplier(privacy, rounds) * privacy.clip / math.sqrt(smallest_sum(masks, sites))


def with_noise(update: Update, deviation: float, source: SecretSource) -> Update:
    """The update with Gaussian noise in every number."""
    noisy = {
        name: noised(source, torch.from_numpy(one), deviation).numpy().astype(np.float32)
        for name, one in update.weighted.items()
    }
    return Update(weighted=noisy, support=update.support)


def clipped_update(
    specs: Iterable[TensorSpec], before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]], clip: float
) -> Update:
    """The delta of all shared tensors together, of L2 norm ``clip`` at most, with support one in every row."""
    specs = list(specs)
    delta = {spec.name: after[spec.name].astype(np.float64) - before[spec.name] for spec in specs}
    norm = math.sqrt(sum(float(np.square(one).sum()) for one in delta.values()))
    factor = min(1.0, clip * (1.0 - ROUNDING) / norm) if norm > 0 else 1.0
    return Update(
        weighted={name: (factor * one).astype(np.float32) for name, one in delta.items()},
        support={spec.name: np.ones(spec.rows) for spec in specs},
    )
