"""Federated logistic regression by DP-SGD: what a private network must beat, under the same accounting.

Each site samples its patients, clips each one's gradient, adds noise to the sum and steps, as public numbers say
(Abadi et al. 2016); the coordinator averages the sites' weights by their declared sizes. Nothing is fitted to
patients beforehand: inputs are scaled by declared ranges.
Shapes: B patients, F features (the last is 1, for the intercept), K classes but the first, whose logit is 0,
Y = K + 1 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from client.site_data import SiteData
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.privacy.accounting import noise_multiplier_for
from flexmoe_core.privacy.events import PrivacyEvent, SampledGaussian, Unprotected, public_schedule
from flexmoe_core.privacy.secret_source import OperatingSystemSource, SecretSource, choose_each, noised
from flexmoe_core.scores import FloatArray
from flexmoe_core.study import Study
from flexmoe_core.validation import FrozenModel
from simulations.baselines.features import site_features
from simulations.baselines.predictions import labels_of

AVERAGING = 0.9
"""Decay of the mean over rounds, as in the federation: what is done to released weights costs nothing."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LogisticSettings(FrozenModel):
    """How to train. The defaults were chosen on generated patients: no real one had a say in them.

    (``epsilon``, ``delta``) holds for each site over all rounds; epsilon None adds no noise and guarantees nothing.
    ``clip`` bounds a patient's gradient either way.
    """

    epsilon: Positive | None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    rounds: int = Field(default=20, ge=1)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Positive = 1.0
    decay: float = Field(default=0.01, ge=0, allow_inf_nan=False, description="of the weights, per unit of step")
    clip: Positive = 1.0


@dataclass(frozen=True, eq=False)
class PrivateLogistic:
    """The released weights, with what they cost each site, and the bytes of the weights of a round."""

    weight_FK: Tensor
    events: Mapping[str, tuple[PrivacyEvent, ...]]
    bytes_per_message: int

    def predict(self, x_BF: FloatArray) -> FloatArray:
        """(B, Y) probabilities for patients without the intercept's feature."""
        probabilities_BY: FloatArray = _probabilities(_with_intercept(x_BF), self.weight_FK).numpy()
        return probabilities_BY


@dataclass(frozen=True, eq=False)
class _Site:
    """A hospital's training patients, how it trains each round, and what a round costs it."""

    x_BF: Tensor
    labels_B: Tensor
    sampling_rate: float
    steps: int
    expected_batch: float
    deviation: float
    event: PrivacyEvent


def private_logistic(
    study: Study, sites: Mapping[str, SiteData], settings: LogisticSettings, source: SecretSource | None = None
) -> PrivateLogistic:
    """Train on the training patients of all sites.

    ``source`` None takes the operating system's randomness; a round with another one is recorded as unprotected.
    Raises InputError for a study with a local encoder, NoSuchNoise for a budget that cannot be kept.
    """
    if local := study.local_modalities:
        what = "has a local encoder, whose scale would be fitted to patients"
        raise InputError([Problem("study", f"modality.{local[0]}", what, "Compare studies of shared encoders.")])
    secret = source or OperatingSystemSource()
    sizes = {name: data.public.patients for name, data in sites.items()}
    noises = {size: _noise(size, settings) for size in sorted(set(sizes.values()))}
    parts = {name: _site(data, study, settings, noises[sizes[name]], secret.secret) for name, data in sites.items()}
    share = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    features = next(iter(parts.values())).x_BF.shape[1]
    weight_FK = torch.zeros(features, len(study.label.classes) - 1, dtype=torch.float64)
    average_FK = weight_FK
    events: dict[str, tuple[PrivacyEvent, ...]] = dict.fromkeys(parts, ())
    for number in range(settings.rounds):
        events = {name: (*events[name], site.event) for name, site in parts.items()}
        trained = [share[name] * _train(site, weight_FK, settings, secret) for name, site in parts.items()]
        weight_FK = torch.stack(trained).sum(dim=0)
        average_FK = average_FK + (weight_FK - average_FK) * (1 - AVERAGING) / (1 - AVERAGING ** (number + 1))
    return PrivateLogistic(average_FK, events, weight_FK.numel() * weight_FK.element_size())


def clipped_gradients(x_BF: Tensor, labels_B: Tensor, weight_FK: Tensor, clip: float) -> Tensor:
    """(F, K) sum over patients of the gradients of their log-losses, each scaled to an L2 norm of at most ``clip``.

    A patient's gradient is the outer product of features and error, so its norm is the product of theirs.
    """
    error_BK = _probabilities(x_BF, weight_FK)[:, 1:] - one_hot(labels_B, weight_FK.shape[1] + 1)[:, 1:]
    norm_B = x_BF.norm(dim=1) * error_BK.norm(dim=1)
    scale_B = clip / norm_B.clamp(min=clip)
    total_FK: Tensor = x_BF.T @ (scale_B[:, None] * error_BK)
    return total_FK


def _noise(patients: int, settings: LogisticSettings) -> float:
    """The noise multiplier of a site of that declared size; 0 without a budget."""
    if settings.epsilon is None:
        return 0.0
    rate, steps = public_schedule(patients, settings.batch_size, settings.epochs)
    return noise_multiplier_for(settings.epsilon, settings.delta, rate, steps * settings.rounds)


def _site(data: SiteData, study: Study, settings: LogisticSettings, noise: float, is_secret: bool) -> _Site:
    rate, steps = public_schedule(data.public.patients, settings.batch_size, settings.epochs)
    event: PrivacyEvent = Unprotected()
    if noise > 0 and is_secret:
        event = SampledGaussian(sampling_rate=rate, noise_multiplier=noise, steps=steps)
    return _Site(
        x_BF=_with_intercept(site_features(data, study, ("train",))),
        labels_B=torch.from_numpy(labels_of(data, ("train",))),
        sampling_rate=rate,
        steps=steps,
        expected_batch=rate * data.public.patients,
        deviation=noise * settings.clip,
        event=event,
    )


def _train(site: _Site, weight_FK: Tensor, settings: LogisticSettings, source: SecretSource) -> Tensor:
    """The weights after a round at one site. The number of steps does not depend on who was sampled."""
    for _ in range(site.steps):
        chosen = choose_each(source, len(site.labels_B), site.sampling_rate)
        total_FK = clipped_gradients(site.x_BF[chosen], site.labels_B[chosen], weight_FK, settings.clip)
        if site.deviation > 0:
            total_FK = noised(source, total_FK, site.deviation)
        gradient_FK = total_FK / site.expected_batch + settings.decay * weight_FK
        weight_FK = weight_FK - settings.learning_rate * gradient_FK
    return weight_FK


def _with_intercept(x_BF: FloatArray) -> Tensor:
    return torch.from_numpy(np.hstack([x_BF, np.ones((len(x_BF), 1))]))


def _probabilities(x_BF: Tensor, weight_FK: Tensor) -> Tensor:
    """(B, Y)."""
    logits_BK = x_BF @ weight_FK
    return torch.cat([torch.zeros_like(logits_BK[:, :1]), logits_BK], dim=1).softmax(dim=1)
