"""Shapes: B patients, N tokens per patient, D width, E experts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from flexmoe_core.mixture import Mixture, RoutingPlan
from flexmoe_core.settings import ModelSettings
from tests.flexmoe_core.cohorts import TINY, generator, gradients, randomize

PATIENTS, TOKENS = 6, 4
EXPERTS, WIDTH = TINY["experts"], TINY["width"]
X_BND = torch.randn(PATIENTS, TOKENS, WIDTH, generator=generator(7), dtype=torch.float64)
PLAN = RoutingPlan(
    expert_B=torch.tensor([0, 1, 2, 3, 0, 2]),
    specialized_B=torch.tensor([False, True, True, True, False, True]),
    learns_B=None,
)
FULL_B = ~PLAN.specialized_B
GENERALIZE = RoutingPlan(PLAN.expert_B, torch.zeros_like(FULL_B), FULL_B)
KINDS = ["pinned", "learned"]


def random_mixture(specialization: str = "pinned", active: int = 2) -> Mixture:
    options = {**TINY, "specialization": specialization, "active_experts": active}
    mixture = Mixture(ModelSettings(**options), generator()).double()
    randomize(mixture, seed=1)
    return mixture


def brute_force(mixture: Mixture, x_BND: Tensor, gates_BNE: Tensor) -> Tensor:
    w, y_BND = mixture.experts.weights(), torch.zeros_like(x_BND)
    for e in range(EXPERTS):
        out_BND = gelu(x_BND @ w.w1_EDH[e] + w.b1_EH[e]) @ w.w2_EHD[e] + w.b2_ED[e]
        y_BND = y_BND + gates_BNE[:, :, e, None] * out_BND
    return y_BND


@pytest.mark.parametrize("active", range(1, EXPERTS + 1))
@pytest.mark.parametrize("specialization", KINDS)
@pytest.mark.parametrize("plan", [PLAN, GENERALIZE])
def test_output_is_the_gated_sum_of_experts(specialization: str, active: int, plan: RoutingPlan) -> None:
    mixture = random_mixture(specialization, active)
    y_BND, _, use = mixture(X_BND, plan, generator(2))
    routing = mixture.router(
        X_BND.flatten(0, 1),
        plan.expert_B.repeat_interleave(TOKENS),
        plan.specialized_B.repeat_interleave(TOKENS),
        None,
        generator(2),
    )
    gates_BNE = routing.gates_TE.reshape(PATIENTS, TOKENS, EXPERTS)
    expected_BND = brute_force(mixture, X_BND, gates_BNE)
    torch.testing.assert_close(y_BND, expected_BND, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(use.gates_BE, gates_BNE.mean(dim=1))
    torch.testing.assert_close(use.routed_BE, (gates_BNE > 0).double().mean(dim=1) / active)


@pytest.mark.parametrize("specialization", KINDS)
def test_use_is_one_patient_each(specialization: str) -> None:
    _, _, use = random_mixture(specialization)(X_BND, PLAN, generator())
    ones_B = torch.ones(PATIENTS).double()
    torch.testing.assert_close(use.gates_BE.sum(dim=1), ones_B)
    torch.testing.assert_close(use.routed_BE.sum(dim=1), ones_B)
    assert not use.gates_BE.requires_grad


def test_every_token_of_a_specialized_patient_has_the_combinations_expert() -> None:
    _, _, use = random_mixture()(X_BND, PLAN, generator())
    for b in PLAN.specialized_B.nonzero().flatten().tolist():
        assert use.routed_BE[b, PLAN.expert_B[b]] == 0.5  # one of two places, in all tokens
        assert use.gates_BE[b].argmax() == PLAN.expert_B[b]


@pytest.mark.parametrize("specialization", KINDS)
def test_only_teachers_change_experts_router_and_balance(specialization: str) -> None:
    mixture = random_mixture(specialization)

    def taught(x_BND: Tensor) -> dict[str, Tensor]:
        y_BND, losses, _ = mixture(x_BND, GENERALIZE, None)
        return gradients(mixture, y_BND.square().sum() + losses.balance + losses.specialization)

    found = taught(X_BND)
    others = taught(torch.where(FULL_B[:, None, None], X_BND, torch.randn_like(X_BND)))
    y_BND, losses, _ = mixture(
        X_BND[FULL_B], replace(GENERALIZE, **{n: getattr(GENERALIZE, n)[FULL_B] for n in vars(GENERALIZE)}), None
    )
    alone = gradients(mixture, y_BND.square().sum() + losses.balance + losses.specialization)
    assert found["experts.w1"].any()
    assert found["router.weight"].any()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, alone[name], rtol=1e-12, atol=1e-12)


def test_teaching_changes_no_value_and_no_gradient_of_tokens() -> None:
    mixture = random_mixture()

    def run(plan: RoutingPlan) -> tuple[Tensor, Tensor]:
        x_BND = X_BND.clone().requires_grad_()
        y_BND, _, _ = mixture(x_BND, plan, None)
        return y_BND, torch.autograd.grad(y_BND.square().sum(), x_BND)[0]

    for first, second in zip(run(GENERALIZE), run(replace(GENERALIZE, learns_B=None)), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learns_B", [None, FULL_B[:0]])
def test_nobody_passes_through(learns_B: Tensor | None) -> None:
    mixture = random_mixture().float()
    y_BND, losses, use = mixture(
        X_BND[:0].float(), RoutingPlan(PLAN.expert_B[:0], PLAN.specialized_B[:0], learns_B), generator()
    )
    assert (y_BND.shape, use.gates_BE.shape) == ((0, TOKENS, WIDTH), (0, EXPERTS))
    assert not any(g.any() for g in gradients(mixture, y_BND.sum() + losses.balance).values())


def test_each_routers_own_tokens_are_counted() -> None:
    modalities, tokens = 2, TOKENS // 2
    settings = ModelSettings(**{**TINY, "router": "modality", "tokens": tokens})
    mixture = Mixture(settings, generator(), modalities).double()
    randomize(mixture, seed=1)
    _, _, use = mixture(X_BND, PLAN, generator(2))
    routing = mixture.router(
        X_BND.flatten(0, 1),
        PLAN.expert_B.repeat_interleave(TOKENS),
        PLAN.specialized_B.repeat_interleave(TOKENS),
        None,
        generator(2),
    )
    assert use.choices is None
    for b in range(PATIENTS):
        for r in range(modalities):
            start = b * TOKENS + r * tokens
            chosen = routing.chosen_TK[start : start + tokens].flatten().tolist()
            shares = [chosen.count(e) / len(chosen) for e in range(EXPERTS)]
            assert use.routed_BRE[b, r].tolist() == pytest.approx(shares)
    torch.testing.assert_close(use.routed_BE, use.routed_BRE.mean(dim=1))
