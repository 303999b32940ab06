"""Routers: noisy top-K over all experts (G-Router), and the combination's own expert first (S-Router).

Flex-MoE, sections 3.3-3.4; noise and load estimate after Shazeer et al. 2017 (arXiv 1701.06538, appendix A);
selection by bias after Wang et al. 2024 (arXiv 2408.15664).

Shapes: T tokens, D width, E experts, K experts per token, R routers, S tokens of one router.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flexmoe_core.chance import Chance, normal_like

NOISE_FLOOR = 1e-2
ABOVE_ALL = 1e30
"""A logit that no other reaches, and whose gradients stay finite."""


@dataclass(frozen=True)
class Routing:
    """Where tokens go, and what the losses need to know about it.

    ``chosen_TK`` int64 and ``gates_TK`` float32 sum to one over K. ``gates_TE`` are the same gates by expert.
    ``balanced_TE`` bool marks the free choices, the pairs that balancing counts: for these ``load_TE`` is the
    probability that the expert is among the chosen when its noise is drawn again. ``clean_TE`` are the logits without
    noise and bias.
    """

    chosen_TK: Tensor
    gates_TK: Tensor
    gates_TE: Tensor
    load_TE: Tensor
    balanced_TE: Tensor
    clean_TE: Tensor


class Router(nn.Module):
    """One router for all tokens, or one per modality, with two modes. It computes in float32 at least: small logit
    errors change experts.

    With ``routers`` R > 1, tokens come in patients of R runs of ``tokens``, one run for each router; row r*E + e of
    the weights is router r's for expert e. ``biased`` adds a bias per expert that only selects: gates do not know it,
    gradients do not reach it (see ``balancing``), and a specialized token's own expert goes without.
    """

    def __init__(
        self,
        experts: int,
        active: int,
        width: int,
        pinned: bool,
        generator: torch.Generator,
        routers: int = 1,
        tokens: int = 1,
        biased: bool = False,
    ) -> None:
        super().__init__()
        self.active, self.pinned, self.routers, self.tokens = active, pinned, routers, tokens
        self.weight = nn.Parameter(torch.randn(routers * experts, width, generator=generator) * width**-0.5)
        self.noise = nn.Parameter(torch.zeros(routers * experts, width))
        self.gate = nn.Parameter(torch.zeros(routers))
        self.bias = nn.Parameter(torch.zeros(experts), requires_grad=False) if biased else None

    def forward(
        self,
        x_TD: Tensor,
        expert_T: Tensor,
        specialized_T: Tensor,
        learns_T: Tensor | None,
        generator: Chance | None,
    ) -> Routing:
        """Route tokens; ``specialized_T`` bool uses ``expert_T`` as target, the others the generalized mode.

        Tokens outside ``learns_T`` give the router no gradient. Noise is drawn only with a generator.
        """
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            clean_TE, spread_TE = self._logits(x_TD.to(dtype), learns_T).chunk(2, dim=1)
            noise_TE, noisy_TE = softplus(spread_TE) + NOISE_FLOOR, clean_TE
            if generator is not None:
                noisy_TE = clean_TE + noise_TE * normal_like(generator, noise_TE)
            special_T1, every_E = specialized_T[:, None], torch.arange(clean_TE.shape[1], device=clean_TE.device)
            own_TE = special_T1 & (expert_T[:, None] == every_E)
            offered_TE, ranked_TE = clean_TE, noisy_TE
            if self.bias is not None:
                bias_TE = self.bias.to(dtype) * ~own_TE
                offered_TE, ranked_TE = clean_TE + bias_TE, noisy_TE + bias_TE
            if self.pinned:
                ranked_TE = ranked_TE.masked_fill(own_TE, ABOVE_ALL)
            chosen_TK = ranked_TE.topk(self.active, dim=1).indices
            top_TK = noisy_TE.gather(1, chosen_TK)
            gates_TK = top_TK.softmax(dim=1)
            if self.pinned:
                gates_TK = torch.where(special_T1, self._pin(top_TK, learns_T), gates_TK)
            return Routing(
                chosen_TK=chosen_TK,
                gates_TK=gates_TK,
                gates_TE=torch.zeros_like(clean_TE).scatter(1, chosen_TK, gates_TK),
                load_TE=load(offered_TE, ranked_TE, noise_TE, self.active),
                # The cross-entropy draws a token to its target; balance must not push it away again.
                balanced_TE=~(special_T1 | own_TE) if self.pinned and self.active == 1 else ~own_TE,
                clean_TE=clean_TE,
            )

    def _pin(self, top_TK: Tensor, learns_T: Tensor | None) -> Tensor:
        """The combination's expert, first in line, gets at least half of the gate; the router shares out the rest."""
        if self.active == 1:
            return torch.ones_like(top_TK)
        share_T1 = self._by_token(0.5 + 0.5 * self.gate.to(top_TK.dtype).sigmoid(), len(top_TK))
        if learns_T is not None:
            share_T1 = torch.where(learns_T[:, None], share_T1, share_T1.detach())
        return torch.cat([share_T1, top_TK[:, 1:].softmax(dim=1) * (1 - share_T1)], dim=1)

    def _logits(self, x_TD: Tensor, learns_T: Tensor | None) -> Tensor:
        """(T, 2E) by each token's own router: logits, then what their noise comes from.

        Tokens outside ``learns_T`` give the weights no gradient.
        """
        both_RED = torch.cat(
            [weight.to(x_TD.dtype).unflatten(-2, (self.routers, -1)) for weight in (self.weight, self.noise)], dim=-2
        )
        logits_TE = self._multiply(x_TD, both_RED)
        if learns_T is None:
            return logits_TE
        return torch.where(learns_T[:, None], logits_TE, self._multiply(x_TD, both_RED.detach()))

    def _multiply(self, x_TD: Tensor, weight_RED: Tensor) -> Tensor:
        if weight_RED.dim() > 3:  # a copy for every patient
            x_BRSD = x_TD.unflatten(0, (len(weight_RED), self.routers, -1))
            return torch.matmul(x_BRSD, weight_RED.transpose(2, 3)).flatten(0, 2)
        if self.routers == 1:
            return x_TD @ weight_RED[0].T
        x_BRSD = x_TD.unflatten(0, (-1, self.routers, self.tokens))
        return torch.einsum("brsd,red->brse", x_BRSD, weight_RED).flatten(0, 2)

    def _by_token(self, value_R: Tensor, tokens: int) -> Tensor:
        """Each token's own router's value: (T, 1)."""
        if value_R.dim() > 1:  # a copy for every patient
            return value_R[:, :, None].expand(-1, -1, tokens // value_R.numel()).reshape(tokens, 1)
        if self.routers == 1:
            return value_R.expand(tokens, 1)
        patients = tokens // (self.routers * self.tokens)
        return value_R[None, :, None].expand(patients, -1, self.tokens).reshape(tokens, 1)


def load(clean_TE: Tensor, noisy_TE: Tensor, noise_TE: Tensor, active: int) -> Tensor:
    """Probability that each expert is among the ``active`` chosen, its own noise drawn again (Shazeer, eq. 8-9)."""
    if clean_TE.shape[1] <= active:
        return torch.ones_like(clean_TE)
    highest_TK = noisy_TE.topk(active + 1, dim=1).values
    last_in_T1, first_out_T1 = highest_TK[:, -2:-1], highest_TK[:, -1:]
    threshold_TE = torch.where(noisy_TE > first_out_T1, first_out_T1, last_in_T1)
    chance_TE: Tensor = torch.special.ndtr((clean_TE - threshold_TE) / noise_TE)
    return chance_TE
