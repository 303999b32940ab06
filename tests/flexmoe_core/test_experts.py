"""The dispatch against every expert applied to every token."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

from flexmoe_core.experts import Experts, ExpertWeights, mix
from tests.flexmoe_core.cohorts import generator, randomize


def random_weights(experts: int, width: int, hidden: int, dtype: torch.dtype, seed: int = 0) -> ExpertWeights:
    module = Experts(experts, width, hidden, generator()).to(dtype)
    randomize(module, seed)
    return module.weights()


def tensors(weights: ExpertWeights) -> tuple[Tensor, ...]:
    return weights.w1_EDH, weights.b1_EH, weights.w2_EHD, weights.b2_ED


def draw_routing(tokens: int, experts: int, active: int, usable: int, seed: int) -> tuple[Tensor, Tensor]:
    """Distinct experts per token among the first ``usable``, and arbitrary gates, in float64."""
    draws = generator(seed)
    chosen_TK = torch.rand(tokens, experts, generator=draws)[:, :usable].topk(active, dim=1).indices
    return chosen_TK, torch.rand(tokens, active, generator=draws, dtype=torch.float64)


def brute_force(x_TD: Tensor, chosen_TK: Tensor, gates_TK: Tensor, weights: ExpertWeights) -> Tensor:
    y_TD = torch.zeros_like(x_TD)
    for e in range(len(weights.w1_EDH)):
        out_TD = gelu(x_TD @ weights.w1_EDH[e] + weights.b1_EH[e]) @ weights.w2_EHD[e] + weights.b2_ED[e]
        y_TD = y_TD + out_TD * (gates_TK * (chosen_TK == e)).sum(dim=1, keepdim=True)
    return y_TD


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_mix_equals_every_expert_applied_to_every_token(data: st.DataObject) -> None:
    tokens, experts = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 5))
    active = data.draw(st.integers(1, experts))
    usable = data.draw(st.integers(active, experts))  # the other experts get no token
    width, hidden = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    seed = data.draw(st.integers(0, 1000))
    weights = random_weights(experts, width, hidden, torch.float64, seed)
    chosen_TK, gates_TK = draw_routing(tokens, experts, active, usable, seed)
    x_TD = torch.randn(tokens, width, generator=generator(seed), dtype=torch.float64)
    learned = (x_TD.requires_grad_(), gates_TK.requires_grad_(), *tensors(weights))

    y_TD, expected_TD = mix(x_TD, chosen_TK, gates_TK, weights), brute_force(x_TD, chosen_TK, gates_TK, weights)
    torch.testing.assert_close(y_TD, expected_TD, rtol=1e-10, atol=1e-12)
    weight_TD = torch.randn(tokens, width, generator=generator(seed + 1), dtype=torch.float64)
    found = torch.autograd.grad((y_TD * weight_TD).sum(), learned)
    for gradient, other in zip(found, torch.autograd.grad((expected_TD * weight_TD).sum(), learned), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)
    for gradient in found[2:]:
        assert not gradient[usable:].any()


@settings(max_examples=15, deadline=None)
@given(tokens=st.integers(0, 40), experts=st.integers(1, 6), seed=st.integers(0, 1000), data=st.data())
def test_float32_agrees_with_float64(tokens: int, experts: int, seed: int, data: st.DataObject) -> None:
    active = data.draw(st.integers(1, experts))
    exact = random_weights(experts, 16, 8, torch.float64, seed)
    chosen_TK, gates_TK = draw_routing(tokens, experts, active, experts, seed)
    x_TD = torch.randn(tokens, 16, generator=generator(seed), dtype=torch.float64).float().double()
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.detach().float().to(dtype).requires_grad_() for t in (x_TD, gates_TK, *tensors(exact))]
        y_TD = mix(leaves[0], chosen_TK, leaves[1], ExpertWeights(*leaves[2:]))
        assert y_TD.dtype == dtype
        results.append((y_TD, *torch.autograd.grad(y_TD.square().mean() if tokens else y_TD.sum(), leaves)))
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_gradients_are_right() -> None:
    weights = random_weights(3, 2, 3, torch.float64)
    chosen_TK, gates_TK = draw_routing(4, 3, 2, 3, seed=1)
    x_TD = torch.randn(4, 2, generator=generator(), dtype=torch.float64)

    def mixed(x_TD: Tensor, gates_TK: Tensor, *weights: Tensor) -> Tensor:
        return mix(x_TD, chosen_TK, gates_TK, ExpertWeights(*weights))

    leaves = [t.detach().clone().requires_grad_() for t in (x_TD, gates_TK, *tensors(weights))]
    assert torch.autograd.gradcheck(mixed, leaves)


def test_hidden_units_are_dropped_with_a_generator_only() -> None:
    weights = random_weights(2, 8, 8, torch.float32)
    chosen_TK, gates_TK = draw_routing(20, 2, 1, 2, seed=0)
    x_TD = torch.randn(20, 8, generator=generator())
    plain = mix(x_TD, chosen_TK, gates_TK, weights)
    assert torch.equal(mix(x_TD, chosen_TK, gates_TK, weights, rate=0.5), plain)
    dropped = mix(x_TD, chosen_TK, gates_TK, weights, 0.5, generator(1))
    assert not torch.equal(dropped, plain)
    assert torch.equal(mix(x_TD, chosen_TK, gates_TK, weights, 0.5, generator(1)), dropped)


def test_experts_start_different_from_each_other_and_the_same_for_a_seed() -> None:
    first, second = Experts(3, 8, 16, generator(5)), Experts(3, 8, 16, generator(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.w1[0], first.w1[1])
    assert not torch.equal(first.w2[0], first.w2[2])
