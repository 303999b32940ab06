"""Ways to do a round of DP-SGD: the one that is shipped, and wrong ones that an audit must catch.

The wrong ones claim the same epsilon. Each is the shipped round with one thing changed from outside.
Shapes: B patients, T rows of a patient, O outputs, V trainable values of the model, N tokens of a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch.nn.functional import cross_entropy

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.model import FlexMoe, encoder_key
from flexmoe_core.privacy import training
from flexmoe_core.privacy.engine import Batch, ChanceOf, ClippedSum, PatientEngine, clip_factors
from flexmoe_core.privacy.events import PatientMechanism
from flexmoe_core.privacy.patient_gradients import Affine, PatientGradients
from flexmoe_core.privacy.secret_source import SecretSource
from flexmoe_core.settings import MethodSettings
from flexmoe_core.training import train_round

SPECIALIZED = RoundPlan(Stage.SPECIALIZE, ordered=False)
NOISE_CUT = 5.0


@dataclass(frozen=True)
class Round:
    """All that a round of one site needs; the model is trained in place."""

    model: FlexMoe
    cohort: Cohort
    table: CombinationTable
    settings: MethodSettings
    mechanism: PatientMechanism
    source: SecretSource


Build = Callable[[Round], None]


def shipped(one: Round, frozen: Collection[str] = ()) -> None:
    """The round that hospitals run."""
    training.train_round_privately(
        one.model,
        one.cohort,
        one.table,
        SPECIALIZED,
        one.settings,
        one.mechanism,
        one.source,
        taught=True,
        frozen=frozen,
    )


def with_little_noise(one: Round) -> None:
    """A fifth of the noise that it claims."""
    less = one.mechanism.model_copy(update={"noise_multiplier": one.mechanism.noise_multiplier / NOISE_CUT})
    shipped(replace(one, mechanism=less))


def with_tokens_as_unit(one: Round) -> None:
    """Every token's gradient is clipped by itself, as where (patients, tokens) are flattened into samples."""
    with patch.object(training, "PatientEngine", TokenEngine):
        shipped(one)


def with_encoders_left_out(one: Round) -> None:
    """Encoders never leave their site, so they are trained without clipping and noise."""
    encoders = {name: value for name, value in one.model.named_parameters() if name.startswith("encoders.")}
    output = one.model(one.cohort, one.table.place(one.cohort.masks_B), specialize=True)
    loss = cross_entropy(output.logits_BY, one.cohort.labels_B)
    gradients = torch.autograd.grad(loss, list(encoders.values()))
    shipped(one, frozen=tuple(encoders))
    with torch.no_grad():
        for parameter, gradient in zip(encoders.values(), gradients, strict=True):
            parameter.sub_(one.settings.training.learning_rate * gradient)


def without_privacy(one: Round) -> None:
    """Plain training, as without ``privacy.patient``."""
    train_round(one.model, one.cohort, one.table, SPECIALIZED, one.settings, seed=0, site="hospital", round_number=1)


SHIPPED, PLAIN = "shipped", "no privacy"
BROKEN: Mapping[str, Build] = {
    "noise": with_little_noise,
    "tokens": with_tokens_as_unit,
    "encoder": with_encoders_left_out,
}
BUILDS: Mapping[str, Build] = {SHIPPED: shipped, PLAIN: without_privacy, **BROKEN}
"""By name."""


class TokenEngine(PatientEngine):
    """Takes every token for a patient."""

    def clipped_sum(self, batch: Batch, clip: float, chance_of: ChanceOf) -> ClippedSum:
        """The sum of all tokens' clipped gradients."""
        total_V = self.flat({})
        if len(batch):
            gradients = self.gradients(batch, chance_of(torch.arange(len(batch))))
            for unit in tokens_apart(gradients, self.model):
                squared_B = torch.stack([one.squared_norms() for one in unit]).sum(dim=0)
                total_V = total_V + self.weighted_sum(unit, clip_factors(squared_B.sqrt(), clip))
        return ClippedSum(total_V, 0.0)


def tokens_apart(gradients: Sequence[PatientGradients], model: FlexMoe) -> Iterator[list[PatientGradients]]:
    """The gradients of each token; what belongs to no single one goes with the first."""
    for token in range(len(model.position)):
        parts = (_part_of(one, token, model) for one in gradients)
        unit = [part for part in parts if part is not None]
        if unit:
            yield unit


def _part_of(one: PatientGradients, token: int, model: FlexMoe) -> PatientGradients | None:
    tokens, width = model.settings.tokens, model.settings.width
    if isinstance(one, Affine):
        for m, modality in enumerate(model.modalities):
            if (one.names.weight or "").startswith(f"encoders.{encoder_key(modality)}."):
                first = (token - m * tokens) * width
                if token // tokens != m:
                    return None
                own_BTO = torch.zeros_like(one.gradients_BTO)
                own_BTO[:, :, first : first + width] = one.gradients_BTO[:, :, first : first + width]
                return replace(one, gradients_BTO=own_BTO)
        if one.inputs_BTI.shape[1] == len(model.position):
            here = slice(token, token + 1)
            return replace(one, inputs_BTI=one.inputs_BTI[:, here], gradients_BTO=one.gradients_BTO[:, here])
    return one if token == 0 else None
