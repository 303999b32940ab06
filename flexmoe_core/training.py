"""One site's local training in one round.

Shapes: B patients, M modalities, S bank rows, L sparse layers, R routers of a layer, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flexmoe_core.balancing import adjust_bias, count_choices
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable, Placement
from flexmoe_core.curriculum import RoundPlan, Stage, batches, teachers
from flexmoe_core.devices import keep_freed_memory
from flexmoe_core.groups import Group, Support, group_of
from flexmoe_core.model import FlexMoe, Output
from flexmoe_core.randomness import torch_generator
from flexmoe_core.rehearsal import Rehearsal, hide_modalities, rehearse
from flexmoe_core.settings import LossSettings, MethodSettings, TrainingSettings


@dataclass(frozen=True)
class TrainingResult:
    """The support of what was trained, and the mean training loss per patient over the round."""

    support: Support
    loss: float


def train_round(
    model: FlexMoe,
    cohort: Cohort,
    table: CombinationTable,
    plan: RoundPlan,
    settings: MethodSettings,
    seed: int,
    site: str,
    round_number: int,
) -> TrainingResult:
    """Train the model in place on one site's patients (at least one).

    Shuffling, hiding, dropout and gate noise come from generators of (seed, site, round) alone. With modality
    dropout a patient who hides something is placed and counted as one who lacks it, but teaches experts or not
    by what is truly there.
    """
    device = cohort.labels_B.device
    shuffling = torch_generator(seed, site, round_number, "shuffling")
    draws = Draws(
        hiding=torch_generator(seed, site, round_number, "hiding"),
        dropping=torch_generator(seed, site, round_number, "modality dropout"),
        noise=torch_generator(seed, site, round_number, "noise", device=device),
    )
    placement, specialize = table.place(cohort.masks_B), plan.stage is Stage.SPECIALIZE
    teaches_B = teachers(placement, plan.stage, settings.curriculum)
    taught = teaches_B is None or bool(teaches_B.any())
    steps = Steps(model, table, settings, draws, specialize, frozen=() if taught else (Group.EXPERTS, Group.ROUTER))
    for epoch in range(settings.training.epochs):
        ordered = plan.ordered and epoch == 0
        for cpu_index_B in batches(cohort.observed_BM, settings.training.batch_size, ordered, shuffling):
            index_B = cpu_index_B.to(device)
            steps.take(
                cohort.select(index_B),
                placement.select(index_B),
                None if teaches_B is None else teaches_B[index_B],
            )
    loss = steps.tally.loss / (len(cohort) * settings.training.epochs)
    if settings.training.optimizer == "sgd":
        return TrainingResult(support_of_sgd(len(cohort), model, steps.tally, taught, settings.training.epochs), loss)
    return TrainingResult(support_of_epoch(len(cohort), plan.stage, steps.tally, settings.training.epochs), loss)


@dataclass(frozen=True)
class Draws:
    """Where chance comes from: generators on the CPU, but ``noise`` (None: no dropout) on the model's device."""

    hiding: torch.Generator
    dropping: torch.Generator
    noise: torch.Generator | None


class Steps:
    """Training steps on one model with one optimizer, and the tally of what they did."""

    def __init__(
        self,
        model: FlexMoe,
        table: CombinationTable,
        settings: MethodSettings,
        draws: Draws,
        specialize: bool,
        frozen: Collection[Group] = (),
    ) -> None:
        self.model, self.table, self.settings, self.draws, self.specialize = model, table, settings, draws, specialize
        keep_freed_memory()
        self.optimizer = build_optimizer(model, settings.training, frozen)
        self.tally = Tally(model)

    def take(self, batch: Cohort, places: Placement, taught_B: Tensor | None) -> None:
        """One step of the optimizer on one batch, whose gradient is computed in ``accumulation`` parts."""
        training, shown = self.settings.training, batch
        if training.modality_dropout > 0:
            shown = hide_modalities(batch, training.modality_dropout, self.draws.dropping)
            places = self.table.place(shown.masks_B)
        self.optimizer.zero_grad(set_to_none=True)
        if training.accumulation == 1:
            parts = [self._learn(batch, shown, places, taught_B, WHOLE)]
        else:
            size = -(-len(batch) // training.accumulation)
            specialized_B = ~places.full_B if taught_B is None else ~places.full_B & taught_B
            parts = [
                self._learn(
                    batch.select(index_S),
                    shown.select(index_S),
                    places.select(index_S),
                    None if taught_B is None else taught_B[index_S],
                    Share.of(index_S, specialized_B),
                )
                for index_S in torch.arange(len(batch), device=batch.labels_B.device).split(size)
            ]
        self.optimizer.step()
        self._balance(parts)

    def _learn(
        self, batch: Cohort, shown: Cohort, places: Placement, taught_B: Tensor | None, share: Share
    ) -> list[Tensor]:
        """Add the gradient of some patients of a batch; their free choices (2, E) in each layer that has a bias."""
        losses = self.settings.losses
        with autocast(batch.labels_B.device, self.settings.training.precision):
            output = self.model(
                shown, places, specialize=self.specialize, teaches_experts_B=taught_B, generator=self.draws.noise
            )
            objective = total(output, batch.labels_B, losses, share)
            self.tally.add(shown, places, output, taught_B, objective / share.patients)
            if losses.rehearsal > 0 and self.model.bank.learns:
                rehearsal = rehearse(
                    self.model, batch, self.table, self.specialize, self.draws.hiding, self.draws.noise
                )
                objective = objective + share.patients * losses.rehearsal * rehearsal.loss
                self.tally.add_rehearsal(rehearsal)
        objective.backward()
        return [count_choices(use.choices, taught_B) for use in output.use if use.choices is not None]

    def _balance(self, parts: Sequence[Sequence[Tensor]]) -> None:
        """Move each layer's bias by the free choices in all parts of the batch."""
        for layer, counts in enumerate(zip(*parts, strict=True)):
            counts_2E = torch.stack(counts).sum(dim=0)
            adjust_bias(self.model.routers[layer], counts_2E, self.settings.training.bias_rate)
            self.tally.offered_LE[layer] += counts_2E[0].double().cpu()


@dataclass(frozen=True)
class Share:
    """What part of a batch some of its patients are: of its ``patients``, and of those who are ``specialized``."""

    patients: float = 1.0
    specialized: float = 1.0

    @classmethod
    def of(cls, index_S: Tensor, specialized_B: Tensor) -> Share:
        """The share of the patients at the given positions."""
        specialized = int(specialized_B[index_S].sum()) / max(int(specialized_B.sum()), 1)
        return cls(len(index_S) / len(specialized_B), specialized)


WHOLE = Share()


def autocast(device: torch.device, precision: Literal["float32", "bfloat16"]) -> torch.autocast:
    """The precision of matrix products; parameters, router, losses and optimizer stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


class Tally:
    """What the steps of a round add up to; float64 on the CPU, in units of patients."""

    def __init__(self, model: FlexMoe) -> None:
        self.loss, self.incomplete = 0.0, 0.0
        self.observed_M, self.lacking_M = (torch.zeros(len(model.modalities), dtype=torch.float64) for _ in range(2))
        self.slots_S = torch.zeros(model.bank.slots, dtype=torch.float64)
        layers, routers, experts = len(model.sparse_layers), model.routers_per_layer, model.settings.experts
        self.routed_LRE = torch.zeros(layers, routers, experts, dtype=torch.float64)
        self.offered_LE = torch.zeros(layers, experts, dtype=torch.float64)
        self._bank = model.bank

    def add(self, shown: Cohort, places: Placement, output: Output, teaches_B: Tensor | None, loss: Tensor) -> None:
        """Count a step: its loss, who showed and lacked what, and the routed tokens of who teaches the experts."""
        self.loss += float(loss.detach()) * len(shown)
        self.incomplete += float((~places.full_B).sum())
        self.observed_M += shown.observed_BM.sum(dim=0).double().cpu()
        self.lacking_M += (~shown.observed_BM).sum(dim=0).double().cpu()
        self.slots_S += self._bank.users(places.slots_BM, shown.observed_BM)
        for layer, use in enumerate(output.use):
            routed_BRE = use.routed_BRE if teaches_B is None else use.routed_BRE * teaches_B[:, None, None]
            self.routed_LRE[layer] += routed_BRE.sum(dim=0).double().cpu()

    def add_rehearsal(self, rehearsal: Rehearsal) -> None:
        """Count who used which token of the bank while hiding modalities."""
        self.lacking_M += rehearsal.lacking_M
        self.slots_S += rehearsal.slots_S


def total(output: Output, labels_B: Tensor, settings: LossSettings, share: Share = WHOLE) -> Tensor:
    """Task loss (mean over patients) plus the weighted losses of routing; parts of a batch add up to the batch.

    Balance alone does not: it is no mean over patients, and a batch in parts has the mean of its parts' balance.
    """
    balanced = cross_entropy(output.logits_BY, labels_B) + settings.balance * output.losses.balance
    specialization = settings.specialization * output.losses.specialization
    return share.patients * balanced + share.specialized * specialization


def support_of_epoch(patients: int, stage: Stage, tally: Tally, epochs: int) -> Support:
    """Count the patients behind each part of the model in an average epoch, which sees everybody once.

    A token of the bank counts who lacked the modality and who hid it.
    """
    incomplete = tally.incomplete / epochs
    return Support(
        patients=float(patients),
        incomplete=incomplete,
        specialized=incomplete if stage is Stage.SPECIALIZE else 0.0,
        modality_M=(tally.observed_M / epochs).numpy(),
        lacking_M=(tally.lacking_M / epochs).numpy(),
        slots_S=(tally.slots_S / epochs).numpy(),
        routed_LRE=(tally.routed_LRE / epochs).numpy(),
        offered_LE=(tally.offered_LE / epochs).numpy(),
    )


def support_of_sgd(patients: int, model: FlexMoe, tally: Tally, taught: bool, epochs: int) -> Support:
    """Everybody behind every part: the steps of a mean loss already hold the share of patients that a part had.

    So one full-batch step over sites equals one pooled step. Nobody is behind experts that were frozen. Biases are
    not moved by the loss, and keep their own count.
    """
    count, teaching = float(patients), float(patients if taught else 0)
    everyone_M = np.full(len(model.modalities), count)
    return Support(
        patients=count,
        incomplete=count,
        specialized=teaching,
        modality_M=everyone_M,
        lacking_M=everyone_M,
        slots_S=np.full(model.bank.slots, count),
        routed_LRE=np.full(tuple(tally.routed_LRE.shape), teaching),
        offered_LE=(tally.offered_LE / epochs).numpy(),
    )


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
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
