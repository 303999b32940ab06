"""One site's local training in one round.

Shapes: M modalities, S bank rows, L sparse layers, R routers of a layer, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.curriculum import RoundPlan, Stage, batches, teachers
from flexmoe_core.devices import reproducible_convolutions
from flexmoe_core.experts import is_wide
from flexmoe_core.groups import Group, Support
from flexmoe_core.model import FlexMoe
from flexmoe_core.randomness import torch_generator
from flexmoe_core.replay import WORTHWHILE
from flexmoe_core.settings import MethodSettings, TrainingSettings
from flexmoe_core.steps import Draws, Steps
from flexmoe_core.tally import Tally


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
    by what is truly there. The same device computes the same bits again.
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
    frozen = () if taught else (Group.EXPERTS, Group.ROUTER)
    replayed = replayed_batch(len(cohort), model, settings.training)
    steps = Steps(model, table, settings, draws, specialize, frozen, replayed)
    with reproducible_convolutions():
        for epoch in range(settings.training.epochs):
            ordered = plan.ordered and epoch == 0
            for cpu_index_B in batches(cohort.observed_BM, settings.training.batch_size, ordered, shuffling):
                index_B = cpu_index_B.to(device)
                steps.take(
                    cohort.select(index_B),
                    placement.select(index_B),
                    None if teaches_B is None else teaches_B[index_B],
                )
    loss = float(steps.tally.loss) / (len(cohort) * settings.training.epochs)
    if settings.training.optimizer == "sgd":
        return TrainingResult(support_of_sgd(len(cohort), model, steps.tally, taught, settings.training.epochs), loss)
    return TrainingResult(support_of_epoch(len(cohort), plan.stage, steps.tally, settings.training.epochs), loss)


def replayed_batch(patients: int, model: FlexMoe, settings: TrainingSettings) -> int | None:
    """The size of the batches of a round that the model's device can record and that are worth it, if any."""
    full = patients // settings.batch_size * settings.epochs
    worthwhile = settings.replay and model.position.is_cuda and full >= WORTHWHILE
    # Experts may stand twice in a layer, once to learn and once not to. Sorted to experts, tokens cannot be recorded.
    hidden_units = 2 * model.settings.routed_experts * model.settings.expert_width
    recordable = is_wide(settings.batch_size * len(model.position), hidden_units)
    return settings.batch_size if worthwhile and recordable else None


def support_of_epoch(patients: int, stage: Stage, tally: Tally, epochs: int) -> Support:
    """Count the patients behind each part of the model in an average epoch, which sees everybody once.

    A token of the bank counts who lacked the modality and who hid it.
    """
    incomplete = float(tally.incomplete) / epochs
    return Support(
        patients=float(patients),
        incomplete=incomplete,
        specialized=incomplete if stage is Stage.SPECIALIZE else 0.0,
        modality_M=(tally.observed_M / epochs).cpu().numpy(),
        lacking_M=(tally.lacking_M / epochs).cpu().numpy(),
        slots_S=(tally.slots_S / epochs).cpu().numpy(),
        routed_LRE=(tally.routed_LRE / epochs).cpu().numpy(),
        offered_LE=(tally.offered_LE / epochs).cpu().numpy(),
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
        offered_LE=(tally.offered_LE / epochs).cpu().numpy(),
    )
