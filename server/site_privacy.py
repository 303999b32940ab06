"""Site-level differential privacy at the coordinator: noise on the sum, and a mean over the public cohort."""

from __future__ import annotations

import numpy as np
import torch

from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.privacy.calibration import site_noise_multiplier
from flexmoe_core.privacy.events import Gaussian
from flexmoe_core.privacy.secret_source import SecretSource, noised
from flexmoe_core.privacy.settings import SitePrivacy
from server.aggregation import Aggregate


class SiteLevelNoise:
    """Protects each site's part in the models that a run lets anybody see, whatever a site's update was.

    Every site takes part in every round, so sampling hides nothing: each round's sum is one Gaussian release.
    """

    def __init__(self, settings: SitePrivacy, rounds: int, source: SecretSource) -> None:
        self._settings, self._source = settings, source
        self.noise_multiplier = site_noise_multiplier(settings, rounds)

    def protect(self, aggregate: Aggregate, noised_by_sites: bool = False) -> Aggregate:
        """The noised sum of clipped deltas of weight one, divided by the cohort and never by who answered.

        Under masks the sites have added the noise, as the coordinator sees their sum.
        """
        deviation, cohort = self.noise_multiplier * self._settings.clip, self._settings.cohort
        delta = {}
        for name, mean in aggregate.delta.items():
            total = mean * float(aggregate.support[name].max(initial=0.0))
            if not noised_by_sites:
                total = noised(self._source, torch.from_numpy(total), deviation).numpy()
            delta[name] = total / cohort
        support = {name: np.full_like(one, float(cohort)) for name, one in aggregate.support.items()}
        return Aggregate(delta, support, aggregate.contributors, aggregate.refused)

    def spent(self, rounds: int) -> float:
        """Epsilon of so many protected rounds."""
        if rounds == 0:
            return 0.0
        return epsilon_of([Gaussian(noise_multiplier=self.noise_multiplier, steps=rounds)], self._settings.delta)
