"""Shapes: T tokens, D width, E experts, K experts per token."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from flexmoe_core.router import Router, Routing, load
from tests.flexmoe_core.cohorts import generator, gradients, randomize

TOKENS, WIDTH, EXPERTS = 60, 6, 5
X_TD = torch.randn(TOKENS, WIDTH, generator=generator(9), dtype=torch.float64)
EVERYBODY_T = torch.ones(TOKENS, dtype=torch.bool)
NOBODY_T = ~EVERYBODY_T
HALF_T = torch.arange(TOKENS) % 2 == 0


def random_router(active: int, pinned: bool, experts: int = EXPERTS) -> Router:
    router = Router(experts, active, WIDTH, pinned, generator()).double()
    randomize(router, seed=active)
    return router


def targets(experts: int = EXPERTS) -> Tensor:
    return torch.arange(TOKENS) % experts


def route(
    router: Router,
    specialized_T: Tensor,
    seed: int | None = None,
    learns_T: Tensor | None = None,
    x_TD: Tensor = X_TD,
) -> Routing:
    noise = None if seed is None else generator(seed)
    routing: Routing = router(x_TD, targets(len(router.weight) // router.routers), specialized_T, learns_T, noise)
    return routing


CASES = [(experts, active) for experts in (1, 2, EXPERTS) for active in range(1, experts + 1)]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize(("experts", "active"), CASES)
def test_gates_sum_to_one_over_distinct_experts(experts: int, active: int, pinned: bool, seed: int | None) -> None:
    routing = route(random_router(active, pinned, experts), HALF_T, seed)
    assert routing.chosen_TK.shape == routing.gates_TK.shape == (TOKENS, active)
    torch.testing.assert_close(routing.gates_TK.sum(dim=1), torch.ones(TOKENS).double())
    assert (routing.gates_TK >= 0).all()
    by_expert_TE = torch.zeros_like(routing.gates_TE)
    for t in range(TOKENS):
        assert len(set(routing.chosen_TK[t].tolist())) == active
        for k in range(active):
            by_expert_TE[t, routing.chosen_TK[t, k]] = routing.gates_TK[t, k]
    assert torch.equal(routing.gates_TE, by_expert_TE)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("experts", "active"), CASES)
@pytest.mark.parametrize("gate", [-30.0, 0.0, 30.0])
def test_pinned_gives_half_of_the_gate_or_more_to_the_expert_of_the_combination(
    experts: int, active: int, seed: int | None, gate: float
) -> None:
    router = random_router(active, pinned=True, experts=experts)
    with torch.no_grad():
        router.gate.fill_(gate)
    routing = route(router, EVERYBODY_T, seed)
    target_T1 = targets(experts)[:, None]
    own_T = routing.gates_TE.gather(1, target_T1).squeeze(1)
    expected = 1.0 if active == 1 else 0.5 + 0.5 / (1 + torch.tensor(-gate).exp().item())
    torch.testing.assert_close(own_T, torch.full((TOKENS,), expected).double())
    assert (own_T >= 0.5).all()
    assert (routing.gates_TE.scatter(1, target_T1, 0.0) <= own_T[:, None]).all()
    assert torch.equal(routing.chosen_TK[:, :1], target_T1)


@pytest.mark.parametrize("seed", [None, 3])
def test_what_the_expert_of_the_combination_gains_the_others_lose(seed: int | None) -> None:
    router = random_router(3, pinned=True)
    routing = route(router, EVERYBODY_T, seed)
    (gained,) = torch.autograd.grad(routing.gates_TK[:, 0].sum(), router.gate, retain_graph=True)
    assert gained > 0
    for gradient in gradients(router, routing.gates_TK.sum()).values():
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_pinned_shares_the_rest_by_the_learned_logits() -> None:
    router = random_router(3, pinned=True)
    routing = route(router, EVERYBODY_T)
    clean_TE = X_TD @ router.weight.detach().T
    for t in range(TOKENS):
        target = int(targets()[t])
        logits = {e: float(clean_TE[t, e]) for e in range(EXPERTS) if e != target}
        others = sorted(logits, key=lambda e: -logits[e])[:2]
        assert set(routing.chosen_TK[t, 1:].tolist()) == set(others)
        weights = torch.tensor([logits[e] for e in others]).double().softmax(dim=0)
        rest = 1 - routing.gates_TE[t, target]
        torch.testing.assert_close(routing.gates_TE[t, others], weights * rest)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("pinned", [True, False])
def test_generalized_tokens_choose_the_best_of_all_experts(pinned: bool, seed: int | None) -> None:
    router = random_router(2, pinned)
    mixed, learned = route(router, HALF_T, seed), route(random_router(2, pinned=False), NOBODY_T, seed)
    for field in fields(Routing):
        assert torch.equal(getattr(mixed, field.name)[~HALF_T], getattr(learned, field.name)[~HALF_T])
    if seed is None:
        top_TK = (X_TD @ router.weight.T).topk(2, dim=1)
        assert torch.equal(mixed.chosen_TK[~HALF_T], top_TK.indices[~HALF_T])
        torch.testing.assert_close(mixed.gates_TK[~HALF_T], top_TK.values.softmax(dim=1)[~HALF_T])
        assert (mixed.chosen_TK[~HALF_T, 0] != targets()[~HALF_T]).any()
    assert mixed.balanced_TE[~HALF_T].all()


@pytest.mark.parametrize("pinned", [True, False])
def test_balance_counts_no_target_of_a_specialized_token(pinned: bool) -> None:
    routing = route(random_router(2, pinned), HALF_T)
    is_target_TE = targets()[:, None] == torch.arange(EXPERTS)
    assert torch.equal(routing.balanced_TE, ~(is_target_TE & HALF_T[:, None]))


def test_pinned_to_one_expert_there_is_nothing_to_balance() -> None:
    assert not route(random_router(1, pinned=True), EVERYBODY_T).balanced_TE.any()


def test_noise_changes_choices_and_never_the_clean_logits() -> None:
    router = random_router(2, pinned=True)
    quiet, noisy = route(router, NOBODY_T), route(router, NOBODY_T, seed=1)
    assert torch.equal(quiet.clean_TE, noisy.clean_TE)
    assert (quiet.chosen_TK != noisy.chosen_TK).any()
    assert torch.equal(route(router, NOBODY_T, seed=1).gates_TK, noisy.gates_TK)


def test_it_computes_in_float32_at_least() -> None:
    router = random_router(2, pinned=True).to(torch.bfloat16)
    routing = route(router, HALF_T, x_TD=X_TD.bfloat16())
    exact_TE = X_TD.bfloat16().double() @ router.weight.double().T
    assert routing.gates_TK.dtype == torch.float32
    torch.testing.assert_close(routing.clean_TE.double(), exact_TE, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [None, 3])
def test_tokens_that_may_not_teach_give_the_router_no_gradient(seed: int | None) -> None:
    router = random_router(2, pinned=True)
    learns_T = torch.arange(TOKENS) % 3 == 0
    weight_TK = torch.randn(TOKENS, 2, generator=generator(4), dtype=torch.float64)

    def taught(x_TD: Tensor, learns_T: Tensor | None, counted_T: Tensor) -> dict[str, Tensor]:
        routing = route(router, HALF_T, seed, learns_T, x_TD)
        return gradients(router, ((routing.gates_TK * weight_TK).sum(dim=1) * counted_T).sum())

    found, alone = taught(X_TD, learns_T, EVERYBODY_T), taught(X_TD, None, learns_T)
    assert {name for name, gradient in found.items() if gradient.any()} >= {"weight", "gate"}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-12, atol=1e-12)
    assert not any(gradient.any() for gradient in taught(X_TD, NOBODY_T, EVERYBODY_T).values())


def test_tokens_that_may_not_teach_still_learn_to_be_routed() -> None:
    x_TD = X_TD.clone().requires_grad_()
    routing = route(random_router(2, pinned=True), HALF_T, learns_T=NOBODY_T, x_TD=x_TD)
    (gradient,) = torch.autograd.grad(routing.gates_TK[:, 0][~HALF_T].sum(), x_TD)
    assert gradient[~HALF_T].any(dim=1).all()


@pytest.mark.parametrize(("candidates", "active"), [(5, 1), (5, 2), (5, 4), (5, 5), (4, 2), (4, 4), (3, 3), (1, 1)])
def test_load_is_the_chance_to_be_chosen_when_an_experts_own_noise_is_drawn_again(
    candidates: int, active: int
) -> None:
    tokens, redraws, draws = 3, 20_000, generator(2)
    clean_TE = torch.randn(tokens, EXPERTS, generator=draws)
    clean_TE[:, candidates:] = -torch.inf
    noise_TE = torch.rand(tokens, EXPERTS, generator=draws) + 0.3
    noisy_TE = clean_TE + torch.randn(tokens, EXPERTS, generator=draws) * noise_TE
    estimate_TE = load(clean_TE, noisy_TE, noise_TE, active)
    for e in range(EXPERTS):
        again_RTE = noisy_TE.expand(redraws, -1, -1).clone()
        again_RTE[:, :, e] = clean_TE[:, e] + torch.randn(redraws, tokens, generator=draws) * noise_TE[:, e]
        chosen_RTK = again_RTE.topk(active, dim=2).indices
        chosen_RT = (chosen_RTK == e).any(dim=2) & torch.isfinite(clean_TE[:, e])
        torch.testing.assert_close(estimate_TE[:, e], chosen_RT.float().mean(dim=0), rtol=0, atol=0.02)


@pytest.mark.parametrize("active", [1, 2, 4])
def test_load_is_its_formula(active: int) -> None:
    """P(x, i) = Phi((x W_i - the K-th highest of the others' noisy logits) / noise_i) (Shazeer, eq. 8-9)."""
    draws = generator(6)
    clean_TE, normal_TE = (torch.randn(4, EXPERTS, generator=draws, dtype=torch.float64) for _ in range(2))
    noise_TE = torch.rand(4, EXPERTS, generator=draws, dtype=torch.float64) + 0.1
    noisy_TE = clean_TE + normal_TE * noise_TE
    found_TE = load(clean_TE, noisy_TE, noise_TE, active)
    for t in range(4):
        for e in range(EXPERTS):
            others = sorted((float(noisy_TE[t, other]) for other in range(EXPERTS) if other != e), reverse=True)
            distance = (float(clean_TE[t, e]) - others[active - 1]) / float(noise_TE[t, e])
            assert float(found_TE[t, e]) == pytest.approx(0.5 * math.erfc(-distance / math.sqrt(2)), rel=1e-9)


@pytest.mark.parametrize(("experts", "active"), [*CASES, (3, 2)])
def test_load_has_finite_gradients(experts: int, active: int) -> None:
    router = random_router(active, pinned=True, experts=experts)
    found = gradients(router, route(router, HALF_T, seed=0).load_TE.square().sum())
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["noise"].any() == (experts > active)


@pytest.mark.parametrize("pinned", [True, False])
def test_nobody_can_be_routed(pinned: bool) -> None:
    router = random_router(2, pinned)
    routing = router(X_TD[:0], targets()[:0], NOBODY_T[:0], None, generator())
    assert routing.gates_TK.shape == (0, 2)
    assert not any(gradient.any() for gradient in gradients(router, routing.gates_TK.sum()).values())


def test_noisy_top_k_is_its_formula() -> None:
    """H = x W + N(0, 1) * (softplus(x W_noise) + a floor), gates the softmax of the K highest (Shazeer, eq. 3-5)."""
    router, active = random_router(3, pinned=False), 3
    routing = route(router, NOBODY_T, seed=7)
    normal_TE = torch.empty(TOKENS, EXPERTS, dtype=torch.float64).normal_(generator=generator(7))
    for t in range(TOKENS):
        noisy = []
        for e in range(EXPERTS):
            clean, spread = ((X_TD[t] * row[e]).sum().item() for row in (router.weight, router.noise))
            noisy.append(clean + float(normal_TE[t, e]) * (math.log1p(math.exp(spread)) + 0.01))
        kept = sorted(range(EXPERTS), key=lambda e: -noisy[e])[:active]
        total = sum(math.exp(noisy[e]) for e in kept)
        gates_E = [math.exp(noisy[e]) / total if e in kept else 0.0 for e in range(EXPERTS)]
        assert routing.gates_TE[t].tolist() == pytest.approx(gates_E, rel=1e-9)
        assert routing.chosen_TK[t].tolist() == kept


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("learns_T", [None, HALF_T])
def test_each_modality_is_routed_by_its_own_router(pinned: bool, seed: int | None, learns_T: Tensor | None) -> None:
    routers, run, active = 3, 5, 2  # 60 tokens: four patients of three modalities of five tokens
    own_T = torch.arange(TOKENS) // run % routers
    many = Router(EXPERTS, active, WIDTH, pinned, generator(), routers=routers, tokens=run).double()
    randomize(many, seed=2)
    together = route(many, HALF_T, seed, learns_T)
    weight_TK = torch.randn(TOKENS, active, generator=generator(5), dtype=torch.float64)
    found = gradients(many, (together.gates_TK * weight_TK).sum())
    for r in range(routers):
        rows = slice(r * EXPERTS, (r + 1) * EXPERTS)
        one = Router(EXPERTS, active, WIDTH, pinned, generator()).double()
        one.load_state_dict({"weight": many.weight[rows], "noise": many.noise[rows], "gate": many.gate[r : r + 1]})
        alone = route(one, HALF_T, seed, learns_T)
        for field in fields(Routing):
            value, expected = getattr(together, field.name)[own_T == r], getattr(alone, field.name)[own_T == r]
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        others = gradients(one, (alone.gates_TK * weight_TK * (own_T == r)[:, None]).sum())
        torch.testing.assert_close(found["weight"][rows], others["weight"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found["gate"][r : r + 1], others["gate"], rtol=1e-10, atol=1e-12)


def test_nobody_can_be_routed_by_routers_of_their_own() -> None:
    router = Router(EXPERTS, 2, WIDTH, True, generator(), routers=3, tokens=5).double()
    assert router(X_TD[:0], targets()[:0], NOBODY_T[:0], None, generator()).gates_TK.shape == (0, 2)


def test_the_routers_of_modalities_start_apart() -> None:
    many = Router(EXPERTS, 2, WIDTH, True, generator(), routers=3)
    assert len(torch.unique(many.weight, dim=0)) == 3 * EXPERTS
