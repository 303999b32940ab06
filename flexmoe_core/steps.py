"""Training steps: what a batch shows, its loss and gradient, the optimizer, and the balance of the experts.

Shapes: B patients, S patients of a part of a batch, M modalities, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from flexmoe_core.balancing import adjust_bias, count_choices
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable, Placement
from flexmoe_core.devices import keep_freed_memory
from flexmoe_core.groups import Group, group_of
from flexmoe_core.model import FlexMoe, Output
from flexmoe_core.rehearsal import CHANCE, hide_modalities, rehearse
from flexmoe_core.replay import Replay
from flexmoe_core.settings import LossSettings, MethodSettings, TrainingSettings
from flexmoe_core.tally import Tally


@dataclass(frozen=True)
class Draws:
    """Where chance comes from: generators on the CPU, but ``noise`` (None: no dropout) on the model's device."""

    hiding: torch.Generator
    dropping: torch.Generator
    noise: torch.Generator | None


@dataclass(frozen=True)
class Lesson:
    """All that a step learns from, drawn and looked up beforehand, so that the step itself is arithmetic alone.

    Patients ``shown`` as the model sees them, and ``hidden`` as they rehearse (None: they do not), each with what the
    table says of them; ``taught_B`` bool, who teaches experts and router (None: all).
    """

    shown: Cohort
    places: Placement
    taught_B: Tensor | None
    hidden: Cohort | None
    hidden_places: Placement | None

    def __len__(self) -> int:
        return len(self.shown)

    def select(self, index_S: Tensor) -> Lesson:
        """The patients at the given positions."""
        return Lesson(
            self.shown.select(index_S),
            self.places.select(index_S),
            None if self.taught_B is None else self.taught_B[index_S],
            None if self.hidden is None else self.hidden.select(index_S),
            None if self.hidden_places is None else self.hidden_places.select(index_S),
        )


class Steps:
    """Training steps on one model with one optimizer, and the tally of what they did.

    On a GPU, batches of ``replayed`` patients (None: none) are one recorded graph, replayed.
    """

    def __init__(
        self,
        model: FlexMoe,
        table: CombinationTable,
        settings: MethodSettings,
        draws: Draws,
        specialize: bool,
        frozen: Collection[Group] = (),
        replayed: int | None = None,
    ) -> None:
        self.model, self.table, self.settings, self.draws, self.specialize = model, table, settings, draws, specialize
        keep_freed_memory()
        self.optimizer = build_optimizer(model, settings.training, frozen)
        self.tally = Tally(model)
        self._rehearses = settings.losses.rehearsal > 0 and model.bank.learns
        self._replayed = replayed
        self._replay: Replay[Lesson] | None = None
        if replayed is not None:
            self._replay = Replay(model.position.device, draws.noise)

    def take(self, batch: Cohort, places: Placement, taught_B: Tensor | None) -> None:
        """One step of the optimizer on one batch, whose gradient is computed in ``accumulation`` parts."""
        lesson = self._prepare(batch, places, taught_B)
        if self._replay is not None and len(lesson) == self._replayed:
            self._replay(self._learn_in_fixed_shapes, lesson)
        else:
            self._learn(lesson)

    def _prepare(self, batch: Cohort, places: Placement, taught_B: Tensor | None) -> Lesson:
        """Draw what patients hide, and look up where that places them."""
        training, shown = self.settings.training, batch
        if training.modality_dropout > 0:
            shown = hide_modalities(batch, training.modality_dropout, self.draws.dropping)
            places = self.table.place(shown.masks_B)
        if not self._rehearses:
            return Lesson(shown, places, taught_B, None, None)
        hidden = hide_modalities(batch, CHANCE, self.draws.hiding)
        return Lesson(shown, places, taught_B, hidden, self.table.place(hidden.masks_B))

    def _learn_in_fixed_shapes(self, lesson: Lesson) -> None:
        self._learn(lesson, fixed_shapes=True)

    def _learn(self, lesson: Lesson, fixed_shapes: bool = False) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.settings.training.accumulation == 1:
            parts = [self._add_gradient(lesson, WHOLE, fixed_shapes)]
        else:
            size = -(-len(lesson) // self.settings.training.accumulation)
            full_B, taught_B = lesson.places.full_B, lesson.taught_B
            specialized_B = ~full_B if taught_B is None else ~full_B & taught_B
            parts = [
                self._add_gradient(lesson.select(index_S), Share.of(index_S, specialized_B), fixed_shapes)
                for index_S in torch.arange(len(lesson), device=full_B.device).split(size)
            ]
        if self.settings.training.gradient_norm > 0:
            clip_grad_norm_(self.model.parameters(), self.settings.training.gradient_norm)
        self.optimizer.step()
        self._balance(parts)

    def _add_gradient(self, lesson: Lesson, share: Share, fixed_shapes: bool) -> list[Tensor]:
        """Add the gradient of some patients of a batch; their free choices (2, E) in each layer that has a bias."""
        shown, losses = lesson.shown, self.settings.losses
        with autocast(shown.labels_B.device, self.settings.training.precision):
            output = self.model(
                shown,
                lesson.places,
                specialize=self.specialize,
                teaches_experts_B=lesson.taught_B,
                generator=self.draws.noise,
                fixed_shapes=fixed_shapes,
            )
            objective = total(output, shown.labels_B, losses, share)
            self.tally.add(shown, lesson.places, output, lesson.taught_B, objective.detach() / share.patients)
            if lesson.hidden is not None:
                assert lesson.hidden_places is not None
                rehearsed = rehearse(
                    self.model, lesson.hidden, lesson.hidden_places, self.specialize, self.draws.noise, fixed_shapes
                )
                objective = objective + share.patients * losses.rehearsal * rehearsed
                self.tally.add_lacking(lesson.hidden, lesson.hidden_places)
        objective.backward()
        return [count_choices(use.choices, lesson.taught_B) for use in output.use if use.choices is not None]

    def _balance(self, parts: Sequence[Sequence[Tensor]]) -> None:
        """Move each layer's bias by the free choices in all parts of the batch."""
        for layer, counts in enumerate(zip(*parts, strict=True)):
            counts_2E = torch.stack(counts).sum(dim=0)
            adjust_bias(self.model.routers[layer], counts_2E, self.settings.training.bias_rate)
            self.tally.add_offered(layer, counts_2E[0])


@dataclass(frozen=True)
class Share:
    """What part of a batch some of its patients are: of its ``patients``, and of those who are ``specialized``."""

    patients: float = 1.0
    specialized: float | Tensor = 1.0

    @classmethod
    def of(cls, index_S: Tensor, specialized_B: Tensor) -> Share:
        """The share of the patients at the given positions."""
        specialized = specialized_B[index_S].sum().double() / specialized_B.sum().clamp(min=1)
        return cls(len(index_S) / len(specialized_B), specialized)


WHOLE = Share()


def autocast(device: torch.device, precision: Literal["float32", "bfloat16"]) -> torch.autocast:
    """The precision of matrix products; parameters, router, losses and optimizer stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def total(output: Output, labels_B: Tensor, settings: LossSettings, share: Share = WHOLE) -> Tensor:
    """Task loss (mean over patients) plus the weighted losses of routing; parts of a batch add up to the batch.

    Balance alone does not: it is no mean over patients, and a batch in parts has the mean of its parts' balance.
    """
    balanced = cross_entropy(output.logits_BY, labels_B) + settings.balance * output.losses.balance
    specialization = settings.specialization * output.losses.specialization
    return share.patients * balanced + share.specialized * specialization


def build_optimizer(
    model: nn.Module, settings: TrainingSettings, frozen: Collection[Group] = ()
) -> torch.optim.Optimizer:
    """A fresh optimizer: decay on matrices, strong decay on the bank's residual rows, none on the rest.

    Frozen groups are left out, because decay alone would move them, and so is what no gradient trains.
    """
    decayed, residual, plain = [], [], []
    for name, parameter in model.named_parameters():
        if group_of(name) in frozen or not parameter.requires_grad:
            continue
        if name == "bank.residual":
            residual.append(parameter)
        elif parameter.dim() > 1 and not name.endswith(("position", ".b1", ".b2", "bank.default")):
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": residual, "weight_decay": settings.bank_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate)
    capturable = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True, capturable=capturable)
