"""Losses of routing (Flex-MoE, section 3.4; Shazeer et al. 2017, section 4), computed and returned, never kept.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexmoe_core.router import Routing


@dataclass(frozen=True)
class RoutingLosses:
    """Scalars: cross-entropy between logits and the combination's expert, and imbalance of use."""

    specialization: Tensor
    balance: Tensor

    def __add__(self, other: RoutingLosses) -> RoutingLosses:
        return RoutingLosses(self.specialization + other.specialization, self.balance + other.balance)


def routing_losses(
    routing: Routing,
    expert_T: Tensor,
    specialized_T: Tensor,
    learns_T: Tensor | None,
    pinned: bool,
    balance: bool = True,
) -> RoutingLosses:
    """Both losses over the tokens that teach the router (all of them where ``learns_T`` is None).

    Specialization is zero where ``pinned``, balance where a bias does its work.
    """
    zero = routing.clean_TE.new_zeros(())
    special_T = specialized_T if learns_T is None else specialized_T & learns_T
    counted_TE = routing.balanced_TE if learns_T is None else routing.balanced_TE & learns_T[:, None]
    specialization = zero
    if not pinned:
        each_T = cross_entropy(routing.clean_TE, expert_T, reduction="none") * special_T
        specialization = each_T.sum() / special_T.sum().clamp(min=1)
    if not balance:
        return RoutingLosses(specialization, zero)
    shares_2TE = torch.stack([routing.gates_TE, routing.load_TE])
    return RoutingLosses(specialization, variation(shares_2TE, counted_TE).sum())


def variation(share_TE: Tensor, counted_TE: Tensor) -> Tensor:
    """Squared coefficient of variation, over experts, of the mean share that each counted token gives them.

    Of each where several (T, E) of shares are stacked.

    A mean over the tokens for which an expert counts, so that being many tokens' target costs it nothing.
    """
    tokens_E = counted_TE.sum(dim=0)
    mean_E = (share_TE * counted_TE).sum(dim=-2) / tokens_E.clamp(min=1)
    present_E = (tokens_E > 0).to(mean_E.dtype)
    experts = present_E.sum().clamp(min=1)
    mean = (mean_E * present_E).sum(dim=-1, keepdim=True) / experts
    variance = ((mean_E - mean) ** 2 * present_E).sum(dim=-1, keepdim=True) / experts
    return (variance / (mean**2 + 1e-10)).squeeze(-1)
