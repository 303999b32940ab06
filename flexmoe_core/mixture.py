"""The sparse mixture-of-experts layer: a router and its experts.

Shapes: B patients, N tokens per patient, T = B*N tokens, D width, E experts, K experts per token, H expert width,
R routers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flexmoe_core.balancing import FreeChoices, free_choices
from flexmoe_core.chance import Chance
from flexmoe_core.experts import Experts, mix
from flexmoe_core.losses import RoutingLosses, routing_losses
from flexmoe_core.router import Router, Routing
from flexmoe_core.settings import ModelSettings


@dataclass(frozen=True)
class RoutingPlan:
    """How the patients of a batch are routed; bool or int64 of shape (B,).

    ``specialized_B`` patients use the S-Router with target ``expert_B``, the others the G-Router. Only
    ``learns_B`` patients teach experts and router (None: all of them).
    """

    expert_B: Tensor
    specialized_B: Tensor
    learns_B: Tensor | None


@dataclass(frozen=True)
class ExpertUse:
    """What each patient used in one layer: ``gates_BE`` mean gate, ``routed_BRE`` share of a router's routed tokens.

    ``choices`` are counted where a bias balances the experts.
    """

    gates_BE: Tensor
    routed_BRE: Tensor
    choices: FreeChoices | None

    @property
    def routed_BE(self) -> Tensor:
        """Share of the patient's N*K routed tokens."""
        return self.routed_BRE.mean(dim=1)


class Mixture(nn.Module):
    """Feed-forward layer whose tokens choose among experts, by one router or by each modality's own."""

    def __init__(self, settings: ModelSettings, generator: torch.Generator, modalities: int = 1) -> None:
        super().__init__()
        self.rate = settings.dropout
        self.pinned = settings.specialization == "pinned"
        self.router = Router(
            settings.experts,
            settings.active_experts,
            settings.width,
            self.pinned,
            generator,
            routers=modalities if settings.router == "modality" else 1,
            tokens=settings.tokens,
            biased=settings.balancing == "bias",
        )
        self.experts = Experts(
            settings.experts, settings.width, settings.expert_width, generator, settings.output_scale
        )

    def forward(
        self, x_BND: Tensor, plan: RoutingPlan, generator: Chance | None
    ) -> tuple[Tensor, RoutingLosses, ExpertUse]:
        """(B, N, D) to (B, N, D), the losses of this layer, and who used which expert."""
        patients, tokens, width = x_BND.shape
        x_TD = x_BND.reshape(-1, width)
        expert_T = plan.expert_B.repeat_interleave(tokens)
        specialized_T = plan.specialized_B.repeat_interleave(tokens)
        learns_T = None if plan.learns_B is None else plan.learns_B.repeat_interleave(tokens)
        routing = self.router(x_TD, expert_T, specialized_T, learns_T, generator)
        y_TD = self._mix(x_TD, routing, learns_T, generator)
        biased = self.router.bias is not None
        losses = routing_losses(routing, expert_T, specialized_T, learns_T, self.pinned, balance=not biased)
        routed_TE = torch.zeros_like(routing.gates_TE).scatter(1, routing.chosen_TK, 1.0)
        (experts, active), routers = (routed_TE.shape[1], routing.chosen_TK.shape[1]), self.router.routers
        use = ExpertUse(
            gates_BE=routing.gates_TE.detach().reshape(patients, tokens, experts).mean(dim=1),
            routed_BRE=routed_TE.reshape(patients, routers, tokens // routers, experts).mean(dim=2) / active,
            choices=free_choices(routing, patients) if biased else None,
        )
        return y_TD.reshape(x_BND.shape), losses, use

    def _mix(self, x_TD: Tensor, routing: Routing, learns_T: Tensor | None, generator: Chance | None) -> Tensor:
        """Tokens that may not teach the experts pass through the same weights without their gradient."""
        live = self.experts()
        if learns_T is None:
            return mix(x_TD, routing.chosen_TK, routing.gates_TK, live, self.rate, generator)
        # A second copy of every expert, which does not learn.
        chosen_TK = torch.where(learns_T[:, None], routing.chosen_TK, routing.chosen_TK + len(live))
        return mix(x_TD, chosen_TK, routing.gates_TK, live.beside(live.detach()), self.rate, generator)
