"""Rehearsal: patients show the model a part of what they have, and the missing-modality bank learns to stand in.

A bank that is trained only on who lacks a modality in this federation learns who they are, and nothing for a modality
that nobody lacks. Only the bank learns here; everything else learns from what patients truly have.

Shapes: B patients, M modalities.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from flexmoe_core.chance import Chance
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import Placement
from flexmoe_core.groups import Group, group_of
from flexmoe_core.model import FlexMoe

CHANCE = 0.5
"""With which each modality is hidden in rehearsal."""


def rehearse(
    model: FlexMoe,
    hidden: Cohort,
    placement: Placement,
    specialize: bool,
    noise: Chance | None,
    fixed_shapes: bool = False,
) -> Tensor:
    """The mean task loss of patients who hide modalities, with gradient for the bank alone."""
    held = {
        name: value if group_of(name) is Group.BANK else value.detach() for name, value in model.named_parameters()
    }
    options = {"specialize": specialize, "generator": noise, "fixed_shapes": fixed_shapes}
    output = functional_call(model, held, (hidden, placement), options)
    return cross_entropy(output.logits_BY, hidden.labels_B)


def hide_modalities(cohort: Cohort, chance: float, generator: torch.Generator) -> Cohort:
    """The same patients, each modality hidden with the given chance, but one of each patient's always kept.

    ``generator`` is a CPU generator; the inputs are not copied.
    """
    return hide_by_lots(cohort, chance, torch.rand(cohort.observed_BM.shape, generator=generator))


def hide_by_lots(cohort: Cohort, chance: float, lots_BM: Tensor) -> Cohort:
    """The same patients, each modality hidden whose lot, uniform in [0, 1) on the CPU, is below the chance.

    Of each patient's, the modality with the highest lot is kept.
    """
    observed_BM = cohort.observed_BM.cpu()
    lots_BM = lots_BM.masked_fill(~observed_BM, -1.0)
    kept_BM = torch.zeros_like(observed_BM).scatter(1, lots_BM.argmax(dim=1, keepdim=True), True)
    shown_BM = observed_BM & ((lots_BM >= chance) | kept_BM)
    return replace(cohort, observed_BM=shown_BM.to(cohort.observed_BM.device))
