"""A clipping norm that follows a quantile of the patients' norms, at the same cost (Andrew et al. 2021).

arXiv 1905.03871. Each step also releases, with noise, how many patients were below the norm.
"""

from __future__ import annotations

import math

import torch

from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.secret_source import SecretSource, noised

RATE = 0.2
"""How fast the norm moves, in logarithms for a share of one."""
SHARE = 0.05
"""Standard deviation of the count's noise, as a share of the expected batch."""
FEWEST = 2.0
"""Standard deviation of the count's noise at least, in noise multipliers: sums then get 3.3 % more noise at most."""


class AdaptiveClip:
    """The clipping norm of the next step; it stays where ``quantile`` is 0.

    A step's two releases are one Gaussian mechanism: of the sum, where one patient changes at most ``clip``, and of
    the count, where he changes a half. With multipliers z_gradient and 2 * deviation it has the multiplier
    (z_gradient^-2 + (2 * deviation)^-2)^(-1/2), which must be the one that the accountant knows.
    """

    def __init__(self, mechanism: PatientMechanism, quantile: float) -> None:
        self.clip, self.quantile, self._expected = mechanism.clip, quantile, mechanism.expected_batch
        self.deviation = max(SHARE * mechanism.expected_batch, FEWEST * mechanism.noise_multiplier)
        self.noise_multiplier = mechanism.noise_multiplier
        if quantile > 0:
            left = mechanism.noise_multiplier**-2 - (2 * self.deviation) ** -2
            self.noise_multiplier = left**-0.5

    def update(self, below: float, source: SecretSource) -> None:
        """Move towards the quantile by a noised count (each patient +1/2 below the norm, -1/2 above it)."""
        if self.quantile > 0:
            count = float(noised(source, torch.tensor(below), self.deviation))
            self.clip *= math.exp(-RATE * (count / self._expected + 0.5 - self.quantile))
