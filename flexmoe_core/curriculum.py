"""Curriculum (Flex-MoE, section 3.4): first generalize on complete patients, then specialize, easy ones first.

Shapes: B patients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from flexmoe_core.combinations import Placement
from flexmoe_core.settings import CurriculumSettings


class Stage(StrEnum):
    """What a round teaches."""

    GENERALIZE = "generalize"
    SPECIALIZE = "specialize"


@dataclass(frozen=True)
class RoundPlan:
    """One round's stage, and whether its first epoch is in descending order of observed modalities."""

    stage: Stage
    ordered: bool


def plan_round(round_number: int, settings: CurriculumSettings) -> RoundPlan:
    """The plan of a round (1-based): a generalize stage of any length, 0 included, then specialize."""
    if round_number <= settings.generalize_rounds:
        return RoundPlan(Stage.GENERALIZE, ordered=False)
    return RoundPlan(Stage.SPECIALIZE, ordered=round_number == settings.generalize_rounds + 1)


def is_specialized(rounds: int, settings: CurriculumSettings) -> bool:
    """Whether a model after that many rounds routes by combination: as the last of them did."""
    return plan_round(max(rounds, 1), settings).stage is Stage.SPECIALIZE


def teachers(placement: Placement, stage: Stage, settings: CurriculumSettings) -> Tensor | None:
    """Who teaches experts and router (bool, (B,)); None for everybody.

    In the generalize stage only generalists do, and nobody at a site with fewer than ``min_full`` of them: its
    patients train encoders, bank, trunk and head against frozen experts.
    """
    if stage is Stage.SPECIALIZE:
        return None
    enough = int(placement.generalist_B.sum()) >= settings.min_full
    return placement.generalist_B & torch.tensor(enough, device=placement.generalist_B.device)


def batches(observed_BM: Tensor, batch_size: int, ordered: bool, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of each batch of one epoch: every patient once, shuffled, or by descending observed modalities.

    Patients with equally many modalities are in random order. ``generator`` is a CPU generator.
    """
    order_B = torch.randperm(len(observed_BM), generator=generator)
    if ordered:
        observed_B = observed_BM.sum(dim=1).cpu()[order_B]
        order_B = order_B[torch.sort(observed_B, descending=True, stable=True).indices]
    yield from order_B.split(batch_size)
