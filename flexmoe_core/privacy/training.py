"""One site's round of DP-SGD (Abadi et al. 2016) over patients: every trainable parameter, and public steps only.

Shapes: B patients, V trainable values of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.devices import keep_freed_memory
from flexmoe_core.model import FlexMoe
from flexmoe_core.privacy.adaptive_clip import AdaptiveClip
from flexmoe_core.privacy.engine import Batch, PatientEngine
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.patient_chance import SecretChance
from flexmoe_core.privacy.secret_source import SecretSource, choose_each, noised
from flexmoe_core.settings import MethodSettings
from flexmoe_core.steps import build_optimizer


@dataclass(frozen=True)
class PrivateResult:
    """``clip`` is the clipping norm after the round, which only adaptive clipping changes."""

    clip: float


def train_round_privately(
    model: FlexMoe,
    cohort: Cohort,
    table: CombinationTable,
    plan: RoundPlan,
    settings: MethodSettings,
    mechanism: PatientMechanism,
    source: SecretSource,
    *,
    taught: bool,
    frozen: Collection[str] = (),
    quantile: float = 0.0,
) -> PrivateResult:
    """Train the model in place on one site's patients, of whom there may be none.

    The mechanism's number of steps, each on a Poisson sample of all patients, with its noise even where the sample is
    empty. ``taught`` says by public facts whether this site's generalists teach experts and router in the generalize
    stage; ``frozen`` names parameters that such facts exclude: these get no gradient, no noise and no step. Every
    other parameter gets all three. ``quantile`` above 0 adapts the clipping norm, within the mechanism's cost.
    Raises TypeError for a model with parameters of which no gradient of single patients is known.
    """
    everyone = _everyone(cohort, table, plan, taught)
    with _without(model, frozen):
        engine = PatientEngine(model, table, settings, plan.stage is Stage.SPECIALIZE)
        steps = PrivateSteps(engine, mechanism, source, quantile)
        with engine.tape.attached():
            for _ in range(mechanism.steps):
                chosen_B = choose_each(source, len(cohort), mechanism.sampling_rate).to(cohort.labels_B.device)
                steps.take(everyone.select(chosen_B))
        model.zero_grad(set_to_none=True)
    return PrivateResult(steps.clip.clip)


class PrivateSteps:
    """Steps of a fresh optimizer by noised sums of clipped gradients, within ``engine.tape.attached()``."""

    def __init__(
        self, engine: PatientEngine, mechanism: PatientMechanism, source: SecretSource, quantile: float
    ) -> None:
        keep_freed_memory()
        self.engine, self.source, self.expected_batch = engine, source, mechanism.expected_batch
        self.optimizer = build_optimizer(engine.model, engine.settings.training)
        self.clip = AdaptiveClip(mechanism, quantile)

    def take(self, batch: Batch) -> None:
        """One step on a sample of the patients, empty or not."""
        clip = self.clip
        found = self.engine.clipped_sum(batch, clip.clip, lambda index_S: SecretChance(self.source, len(index_S)))
        noisy_V = noised(self.source, found.total_V, clip.noise_multiplier * clip.clip)
        _give(self.engine.trained, noisy_V / self.expected_batch)
        self.optimizer.step()
        clip.update(found.below, self.source)


def _everyone(cohort: Cohort, table: CombinationTable, plan: RoundPlan, taught: bool) -> Batch:
    """All patients; in the generalize stage generalists teach experts and router, or nobody does."""
    places = table.place(cohort.masks_B)
    if plan.stage is Stage.SPECIALIZE:
        return Batch(cohort, places, None)
    return Batch(cohort, places, places.generalist_B if taught else torch.zeros_like(places.generalist_B))


def _give(trained: dict[str, nn.Parameter], gradient_V: Tensor) -> None:
    """Each parameter its part of the gradient."""
    parts = gradient_V.split([parameter.numel() for parameter in trained.values()])
    for parameter, part in zip(trained.values(), parts, strict=True):
        parameter.grad = part.reshape(parameter.shape).to(parameter.device, parameter.dtype)


@contextmanager
def _without(model: nn.Module, frozen: Collection[str]) -> Iterator[None]:
    """Meanwhile the named parameters do not learn. Raises KeyError for a name that the model does not have."""
    parameters = dict(model.named_parameters())
    excluded = [parameters[name] for name in frozen if parameters[name].requires_grad]
    for parameter in excluded:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in excluded:
            parameter.requires_grad_(True)
