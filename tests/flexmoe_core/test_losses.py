"""The losses against loops that read like their definitions."""

import math

import pytest
import torch
from torch import Tensor

from flexmoe_core.losses import routing_losses, variation
from flexmoe_core.router import Router, Routing
from tests.flexmoe_core.cohorts import generator, gradients, randomize

TOKENS, WIDTH, EXPERTS = 24, 4, 4
X_TD = torch.randn(TOKENS, WIDTH, generator=generator(9), dtype=torch.float64)
EXPERT_T = torch.arange(TOKENS) % EXPERTS
SPECIALIZED_T = torch.arange(TOKENS) % 3 != 0
LEARNS_T = torch.arange(TOKENS) % 2 == 0


def random_routing(pinned: bool, active: int = 2, learns_T: Tensor | None = None) -> tuple[Router, Routing]:
    router = Router(EXPERTS, active, WIDTH, pinned, generator()).double()
    randomize(router, seed=3)
    return router, router(X_TD, EXPERT_T, SPECIALIZED_T, learns_T, generator(1))


def squared_variation(shares: list[list[float]], counts: list[list[bool]]) -> float:
    """Per expert the mean share over the tokens that count for it; variance over mean squared of these."""
    means = []
    for e in range(EXPERTS):
        counted = [share[e] for share, count in zip(shares, counts, strict=True) if count[e]]
        if counted:
            means.append(sum(counted) / len(counted))
    if not means:
        return 0.0
    mean = sum(means) / len(means)
    return sum((one - mean) ** 2 for one in means) / len(means) / mean**2


@pytest.mark.parametrize("learns_T", [None, LEARNS_T])
@pytest.mark.parametrize("active", [2, 3, 4])
@pytest.mark.parametrize("pinned", [True, False])
def test_balance_is_the_variation_of_importance_and_of_load(
    pinned: bool, active: int, learns_T: Tensor | None
) -> None:
    _, routing = random_routing(pinned, active, learns_T)
    teaches_T = torch.ones(TOKENS, dtype=torch.bool) if learns_T is None else learns_T
    counts = [
        [bool(teaches_T[t]) and not (bool(SPECIALIZED_T[t]) and e == int(EXPERT_T[t])) for e in range(EXPERTS)]
        for t in range(TOKENS)
    ]
    expected = sum(squared_variation(shares.tolist(), counts) for shares in (routing.gates_TE, routing.load_TE))
    found = routing_losses(routing, EXPERT_T, SPECIALIZED_T, learns_T, pinned).balance
    assert expected > 0
    assert found.item() == pytest.approx(expected, rel=1e-8)


def test_equal_use_costs_nothing_and_one_expert_for_all_costs_most() -> None:
    counted_TE = torch.ones(EXPERTS, EXPERTS, dtype=torch.bool)
    assert variation(torch.eye(EXPERTS), counted_TE).item() == pytest.approx(0, abs=1e-12)
    always_first_TE = torch.nn.functional.one_hot(torch.zeros(EXPERTS, dtype=torch.int64), EXPERTS).float()
    assert variation(always_first_TE, counted_TE).item() == pytest.approx(EXPERTS - 1, rel=1e-6)


def test_being_many_tokens_target_costs_nothing() -> None:
    share_TE = torch.full((9, EXPERTS), 1 / (EXPERTS - 1))
    share_TE[:, 0] = 0.9
    counted_TE = torch.arange(EXPERTS).expand(9, EXPERTS) != 0
    assert variation(share_TE, counted_TE).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("learns_T", [None, LEARNS_T])
def test_specialization_is_the_mean_cross_entropy_of_clean_logits(learns_T: Tensor | None) -> None:
    _, routing = random_routing(pinned=False)
    terms = []
    for t in range(TOKENS):
        if SPECIALIZED_T[t] and (learns_T is None or learns_T[t]):
            logits = routing.clean_TE[t].tolist()
            terms.append(-logits[int(EXPERT_T[t])] + math.log(sum(math.exp(logit) for logit in logits)))
    found = routing_losses(routing, EXPERT_T, SPECIALIZED_T, learns_T, pinned=False).specialization
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-10)


def test_specialization_teaches_the_logits_and_not_the_noise() -> None:
    router, routing = random_routing(pinned=False)
    loss = routing_losses(routing, EXPERT_T, SPECIALIZED_T, None, pinned=False).specialization
    found = gradients(router, loss)
    assert found["weight"].any()
    assert not found["noise"].any()
    probabilities_TE = (X_TD @ router.weight.T).softmax(dim=1)
    wrong_TE = (probabilities_TE - torch.nn.functional.one_hot(EXPERT_T, EXPERTS)) * SPECIALIZED_T[:, None]
    torch.testing.assert_close(found["weight"], wrong_TE.T @ X_TD / SPECIALIZED_T.sum())


def test_pinned_specialization_needs_no_cross_entropy() -> None:
    _, routing = random_routing(pinned=True)
    assert routing_losses(routing, EXPERT_T, SPECIALIZED_T, None, pinned=True).specialization.item() == 0.0


@pytest.mark.parametrize("pinned", [True, False])
def test_balance_ignores_those_who_may_not_teach(pinned: bool) -> None:
    router, _ = random_routing(pinned)

    def balance(x_TD: Tensor) -> tuple[float, dict[str, Tensor]]:
        routing = router(x_TD, EXPERT_T, SPECIALIZED_T, LEARNS_T, generator(1))
        loss = routing_losses(routing, EXPERT_T, SPECIALIZED_T, LEARNS_T, pinned).balance
        return loss.item(), gradients(router, loss)

    other_TD = torch.where(LEARNS_T[:, None], X_TD, X_TD + 1.0)
    (first, found), (second, others) = balance(X_TD), balance(other_TD)
    assert first == pytest.approx(second, rel=1e-12)
    assert found["weight"].any()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pinned", [True, False])
def test_nobody_costs_nothing(pinned: bool) -> None:
    router, _ = random_routing(pinned)
    nobody_T = SPECIALIZED_T[:0]
    routing = router(X_TD[:0], EXPERT_T[:0], nobody_T, None, generator(1))
    losses = routing_losses(routing, EXPERT_T[:0], nobody_T, None, pinned)
    assert (losses.balance.item(), losses.specialization.item()) == (0.0, 0.0)
    found = gradients(router, losses.balance + losses.specialization)
    assert not any(gradient.any() for gradient in found.values())
