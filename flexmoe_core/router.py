"""Routers: noisy top-K over all experts (G-Router), and the combination's own expert first (S-Router).

Flex-MoE, sections 3.3-3.4; noise and load estimate after Shazeer et al. 2017 (arXiv 1701.06538, appendix A);
selection by bias after Wang et al. 2024 (arXiv 2408.15664).

Shapes: T tokens, D width, E experts, K experts per token, R routers, S tokens of one router.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

NOISE_FLOOR = 1e-2


@dataclass(frozen=True)
class Routing:
    """Where tokens go, and what the losses need to know about it.

    ``chosen_TK`` int64 and ``gates_TK`` float32 sum to one over K. ``gates_TE`` are the same gates by expert.
    ``load_TE`` is each expert's probability to be among the chosen when the noise is drawn again, and
    ``balanced_TE`` bool marks the free choices: the pairs that balancing counts. ``clean_TE`` are the logits without
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
        generator: torch.Generator | None,
    ) -> Routing:
        """Route tokens; ``specialized_T`` bool uses ``expert_T`` as target, the others the generalized mode.

        Tokens outside ``learns_T`` give the router no gradient. Noise is drawn only with a generator.
        """
        dtype = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.to(dtype)
            clean_TE = self._logits(x_TD, self.weight.to(dtype), learns_T)
            noise_TE = nn.functional.softplus(self._logits(x_TD, self.noise.to(dtype), learns_T)) + NOISE_FLOOR
            noisy_TE = clean_TE
            if generator is not None:
                drawn = torch.empty_like(clean_TE).normal_(generator=generator)
                noisy_TE = clean_TE + drawn * noise_TE
            # The cross-entropy draws a token to its target; balance must not push it away again.
            free_TE = ~(specialized_T[:, None] & _is_target(expert_T, clean_TE))
            general = self._top(clean_TE, noisy_TE, noise_TE, free_TE, self.active)
            if self.pinned:
                return self._pin(general, clean_TE, noisy_TE, noise_TE, expert_T, specialized_T, learns_T)
            return replace(general, balanced_TE=free_TE)

    def _top(self, clean_TE: Tensor, noisy_TE: Tensor, noise_TE: Tensor, free_TE: Tensor, active: int) -> Routing:
        """The ``active`` best; a bias helps to choose where the choice is free, and has no part in the gates."""
        if self.bias is None:
            top_TK, chosen_TK = noisy_TE.topk(active, dim=1)
            load_TE = load(clean_TE, noisy_TE, noise_TE, active)
        else:
            bias_TE = self.bias.to(clean_TE.dtype) * free_TE
            chosen_TK = (noisy_TE + bias_TE).topk(active, dim=1).indices
            top_TK = noisy_TE.gather(1, chosen_TK)
            load_TE = load(clean_TE + bias_TE, noisy_TE + bias_TE, noise_TE, active)
        gates_TK = top_TK.softmax(dim=1)
        return Routing(
            chosen_TK=chosen_TK,
            gates_TK=gates_TK,
            gates_TE=torch.zeros_like(clean_TE).scatter(1, chosen_TK, gates_TK),
            load_TE=load_TE,
            balanced_TE=torch.ones_like(clean_TE, dtype=torch.bool),
            clean_TE=clean_TE,
        )

    def _pin(
        self,
        general: Routing,
        clean_TE: Tensor,
        noisy_TE: Tensor,
        noise_TE: Tensor,
        expert_T: Tensor,
        specialized_T: Tensor,
        learns_T: Tensor | None,
    ) -> Routing:
        """The combination's expert gets at least half of the gate; the router shares out the rest."""
        target_T1 = expert_T[:, None]
        is_target_TE = _is_target(expert_T, clean_TE)
        others = self.active - 1
        share_T1 = self._by_token(0.5 + 0.5 * self.gate.to(clean_TE.dtype).sigmoid(), len(clean_TE))
        if learns_T is not None:
            share_T1 = torch.where(learns_T[:, None], share_T1, share_T1.detach())
        if others == 0:
            share_T1 = torch.ones_like(share_T1)
        rest = self._top(
            clean_TE.masked_fill(is_target_TE, -torch.inf),
            noisy_TE.masked_fill(is_target_TE, -torch.inf),
            noise_TE,
            ~is_target_TE,
            others,
        )
        chosen_TK = torch.cat([target_T1, rest.chosen_TK], dim=1)
        gates_TK = torch.cat([share_T1, rest.gates_TK * (1 - share_T1)], dim=1)
        gates_TE = torch.zeros_like(clean_TE).scatter(1, chosen_TK, gates_TK)
        balanced_TE = ~is_target_TE if others else torch.zeros_like(is_target_TE)
        special_T1 = specialized_T[:, None]
        return Routing(
            chosen_TK=torch.where(special_T1, chosen_TK, general.chosen_TK),
            gates_TK=torch.where(special_T1, gates_TK, general.gates_TK),
            gates_TE=torch.where(special_T1, gates_TE, general.gates_TE),
            load_TE=torch.where(special_T1, rest.load_TE, general.load_TE),
            balanced_TE=torch.where(special_T1, balanced_TE, general.balanced_TE),
            clean_TE=clean_TE,
        )

    def _logits(self, x_TD: Tensor, weight: Tensor, learns_T: Tensor | None) -> Tensor:
        """Each token's logits by its own router; tokens outside ``learns_T`` give the weights no gradient."""
        logits_TE = self._multiply(x_TD, weight)
        if learns_T is None:
            return logits_TE
        return torch.where(learns_T[:, None], logits_TE, self._multiply(x_TD, weight.detach()))

    def _multiply(self, x_TD: Tensor, weight: Tensor) -> Tensor:
        if self.routers == 1:
            return x_TD @ weight.T
        x_BRSD = x_TD.unflatten(0, (-1, self.routers, self.tokens))
        return torch.einsum("brsd,red->brse", x_BRSD, weight.unflatten(0, (self.routers, -1))).flatten(0, 2)

    def _by_token(self, value_R: Tensor, tokens: int) -> Tensor:
        """Each token's own router's value: (T, 1)."""
        if self.routers == 1:
            return value_R.expand(tokens, 1)
        patients = tokens // (self.routers * self.tokens)
        return value_R[None, :, None].expand(patients, -1, self.tokens).reshape(tokens, 1)


def load(clean_TE: Tensor, noisy_TE: Tensor, noise_TE: Tensor, active: int) -> Tensor:
    """Probability that each expert is among the ``active`` chosen, its own noise drawn again (Shazeer, eq. 8-9).

    Experts at minus infinity are not candidates: their load is 0.
    """
    candidates_TE = torch.isfinite(clean_TE)
    if active == 0:
        return torch.zeros_like(clean_TE)
    if clean_TE.shape[1] <= active:
        return candidates_TE.to(clean_TE.dtype)
    highest_TK = noisy_TE.topk(active + 1, dim=1).values
    last_in_T1, first_out_T1 = highest_TK[:, -2:-1], highest_TK[:, -1:]
    threshold_TE = torch.where(noisy_TE > first_out_T1, first_out_T1, last_in_T1)
    # With as many candidates as places every candidate is in; the threshold is then minus infinity.
    bounded_TE = torch.where(torch.isfinite(threshold_TE), threshold_TE, torch.zeros_like(threshold_TE))
    clean_or_zero_TE = torch.where(candidates_TE, clean_TE, torch.zeros_like(clean_TE))
    chance_TE = torch.special.ndtr((clean_or_zero_TE - bounded_TE) / noise_TE)
    chance_TE = torch.where(torch.isfinite(threshold_TE), chance_TE, torch.ones_like(chance_TE))
    return torch.where(candidates_TE, chance_TE, torch.zeros_like(chance_TE))


def _is_target(expert_T: Tensor, clean_TE: Tensor) -> Tensor:
    return torch.zeros_like(clean_TE, dtype=torch.bool).scatter(1, expert_T[:, None], True)
