"""Balance without a loss: a bias per expert that rises while few choose it (Wang et al. 2024, arXiv 2408.15664).

A balance loss couples the patients of a batch and pulls against the task; the bias does neither. All that it needs
of a patient are two fractions per expert, so a privacy mechanism can bound what one patient changes.

Shapes: B patients, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexmoe_core.router import Router, Routing


@dataclass(frozen=True)
class FreeChoices:
    """Shares of each patient's tokens: ``offered_BE`` could choose the expert by its logit, ``taken_BE`` did.

    A specialized token's own expert is no free choice.
    """

    offered_BE: Tensor
    taken_BE: Tensor


def free_choices(routing: Routing, patients: int) -> FreeChoices:
    """The free choices among the tokens of each patient."""
    chosen_TE = torch.zeros_like(routing.balanced_TE).scatter(1, routing.chosen_TK, True)
    by_patient = (patients, len(chosen_TE) // max(patients, 1), chosen_TE.shape[1])
    offered_BE, taken_BE = (
        choice_TE.reshape(by_patient).float().mean(dim=1)
        for choice_TE in (routing.balanced_TE, routing.balanced_TE & chosen_TE)
    )
    return FreeChoices(offered_BE, taken_BE)


def count_choices(choices: FreeChoices, teaches_B: Tensor | None) -> Tensor:
    """Offered and taken (2, E), summed over who teaches the router (None: all); parts of a batch add up."""
    shares_2BE = torch.stack([choices.offered_BE, choices.taken_BE])
    return (shares_2BE if teaches_B is None else shares_2BE * teaches_B[:, None]).sum(dim=1)


@torch.no_grad()
def adjust_bias(router: Router, counts_2E: Tensor, rate: float) -> None:
    """After a step: bias += rate * sign(mean load - load), in place, an expert's load being taken / offered.

    An expert that was offered to nobody keeps its bias and is not part of the mean.
    """
    assert router.bias is not None
    offered_E, taken_E = counts_2E
    present_E = offered_E > 0
    load_E = taken_E / torch.where(present_E, offered_E, 1.0)
    mean = (load_E * present_E).sum() / present_E.sum().clamp(min=1)
    router.bias.add_(rate * torch.sign(mean - load_E) * present_E)
