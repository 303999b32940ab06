"""Every patient's gradient of the whole model in one forward and one backward pass, clipped, and summed.

Shapes: B patients of a batch, S patients of a part of it, V trainable values of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from flexmoe_core.chance import PatientChance
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable, Placement
from flexmoe_core.model import FlexMoe
from flexmoe_core.privacy.patient_chance import uniform_lots
from flexmoe_core.privacy.patient_gradients import PatientGradients, Whole
from flexmoe_core.privacy.samplers import gradients_of
from flexmoe_core.privacy.tape import Tape
from flexmoe_core.rehearsal import CHANCE, hide_by_lots
from flexmoe_core.settings import MethodSettings
from flexmoe_core.steps import Lesson

MOST_AT_ONCE = 128
"""Patients whose gradients are made at once, whatever the size of the batch: memory follows it."""


@dataclass(frozen=True)
class Batch:
    """Patients, their places in the table, and who teaches experts and router (bool (B,); None: all)."""

    cohort: Cohort
    places: Placement
    taught_B: Tensor | None

    def __len__(self) -> int:
        return len(self.cohort)

    def select(self, index_S: Tensor) -> Batch:
        """The patients at the given positions."""
        taught_B = None if self.taught_B is None else self.taught_B[index_S]
        return Batch(self.cohort.select(index_S), self.places.select(index_S), taught_B)


ChanceOf = Callable[[Tensor], PatientChance]
"""Chance for the patients at the given positions of a batch."""


@dataclass(frozen=True)
class ClippedSum:
    """Sum (V,) of clipped gradients in the order of the model's trainable parameters, and who was below the clip.

    ``below`` counts each of them as +1/2 and the others as -1/2: one patient changes it by a half.
    """

    total_V: Tensor
    below: float


class PatientEngine:
    """Gradients of single patients for a model, whose parameters that require none are left out of all of it.

    Use within ``tape.attached()``. A patient's loss is his own cross-entropy, plus the weighted specialization loss
    over his own tokens, plus the weighted loss of his rehearsal, for the bank alone. There is no loss of balance,
    which has no part of a single patient's.
    """

    def __init__(self, model: FlexMoe, table: CombinationTable, settings: MethodSettings, specialize: bool) -> None:
        self.model, self.table, self.settings, self.specialize = model, table, settings, specialize
        self.tape = Tape(model)
        self.trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._rehearses = settings.losses.rehearsal > 0 and model.bank.learns

    def clipped_sum(self, batch: Batch, clip: float, chance_of: ChanceOf) -> ClippedSum:
        """The batch's sum, in parts, which do not change it; zeros for an empty one."""
        parts = max(self.settings.training.accumulation, -(-len(batch) // MOST_AT_ONCE))
        found = ClippedSum(self.flat({}), 0.0)
        for index_S in torch.arange(len(batch), device=batch.cohort.labels_B.device).chunk(parts):
            if len(index_S):
                part = self._clipped_part(batch.select(index_S), index_S, clip, chance_of)
                found = ClippedSum(found.total_V + part.total_V, found.below + part.below)
        return found

    def _clipped_part(self, part: Batch, index_S: Tensor, clip: float, chance_of: ChanceOf) -> ClippedSum:
        gradients = self.gradients(part, chance_of(index_S))
        norms_S = self.norms(gradients, len(part))
        if not norms_S.isfinite().all():
            # A patient whose gradient overflows counts as zero, and changes nothing of the others'.
            gradients = [one.without_overflow() for one in gradients]
        below = float((norms_S <= clip).sum()) - 0.5 * len(part)
        return ClippedSum(self.weighted_sum(gradients, clip_factors(norms_S, clip)), below)

    def norms(self, gradients: list[PatientGradients], patients: int) -> Tensor:
        """(S,): of each patient's gradient of all parameters together."""
        squared_S = self.model.position.new_zeros(patients)
        for one in gradients:
            squared_S = squared_S + one.squared_norms()
        return squared_S.sqrt()

    def weighted_sum(self, gradients: list[PatientGradients], weight_S: Tensor) -> Tensor:
        """(V,): the sum over patients, each with a weight."""
        found: dict[str, Tensor] = {}
        for one in gradients:
            found |= one.weighted_sum(weight_S)
        return self.flat(found)

    def flat(self, values: dict[str, Tensor]) -> Tensor:
        """(V,): by name to side by side, zeros for what is not there."""
        return torch.cat(
            [
                values[name].flatten() if name in values else parameter.detach().new_zeros(parameter.numel())
                for name, parameter in self.trained.items()
            ]
        )

    def gradients(self, batch: Batch, chance: PatientChance) -> list[PatientGradients]:
        """Of at least one patient, each parameter in at most one of them."""
        patients = len(batch)
        held = {name: value.detach() for name, value in self.model.named_parameters()}
        copies = {
            name: value.detach().expand(patients, *value.shape).requires_grad_(value.requires_grad)
            for name, value in self.tape.copied.items()
        }
        self.tape.clear()
        with torch.enable_grad():
            objective = self._objective(self._prepare(batch, chance), chance, held, copies)
        if objective.requires_grad:
            objective.backward()
        found: list[PatientGradients] = []
        if own := {name: copy.grad for name, copy in copies.items() if copy.grad is not None}:
            found.append(Whole(own))
        for name, layer in self.tape.layers.items():
            found += gradients_of(name, layer, self.tape.calls.get(name, ()), patients)
        self.tape.clear()
        return found

    def _prepare(self, batch: Batch, chance: PatientChance) -> Lesson:
        """Draw what patients hide. Who teaches is decided by what is truly there."""
        shown, places, rate = batch.cohort, batch.places, self.settings.training.modality_dropout
        modalities = shown.observed_BM.shape[1]
        if rate > 0:
            shown = hide_by_lots(shown, rate, uniform_lots(chance, modalities))
            places = self.table.place(shown.masks_B)
        if not self._rehearses:
            return Lesson(shown, places, batch.taught_B, None, None)
        hidden = hide_by_lots(batch.cohort, CHANCE, uniform_lots(chance, modalities))
        return Lesson(shown, places, batch.taught_B, hidden, self.table.place(hidden.masks_B))

    def _objective(
        self, lesson: Lesson, chance: PatientChance, held: dict[str, Tensor], copies: dict[str, Tensor]
    ) -> Tensor:
        """The sum of the patients' losses, in which each has a summand of his own."""
        losses, places, labels_B = self.settings.losses, lesson.places, lesson.shown.labels_B
        options = {"specialize": self.specialize, "generator": chance, "fixed_shapes": True}
        output = functional_call(
            self.model,
            held | copies,
            (lesson.shown, places),
            {**options, "teaches_experts_B": lesson.taught_B},
        )
        objective = cross_entropy(output.logits_BY, labels_B, reduction="sum")
        if losses.specialization > 0:
            # A mean over the tokens of all who are specialized, of whom each has as many: times their number, a sum.
            specialized_B = ~places.full_B & self.specialize
            specialized_B = specialized_B if lesson.taught_B is None else specialized_B & lesson.taught_B
            objective = objective + losses.specialization * specialized_B.sum() * output.losses.specialization
        if lesson.hidden is not None:
            with self.tape.bank_alone():
                rehearsed = functional_call(self.model, held, (lesson.hidden, lesson.hidden_places), options)
            rehearsal = cross_entropy(rehearsed.logits_BY, lesson.hidden.labels_B, reduction="sum")
            objective = objective + losses.rehearsal * rehearsal
        return objective


def clip_factors(norms_B: Tensor, clip: float) -> Tensor:
    """(B,): what brings each gradient to a norm of at most the clip; zero for one that is not finite.

    A little less than that, as far as the sum of a batch can be wrong in the last bits of its precision.
    """
    bound = clip * (1.0 - torch.finfo(norms_B.dtype).eps ** 0.5)
    factors_B = (bound / norms_B.clamp(min=torch.finfo(norms_B.dtype).tiny)).clamp(max=1.0)
    return torch.where(norms_B.isfinite(), factors_B, 0.0)
