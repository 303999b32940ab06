"""Squared norms of sums of outer products, against the sums themselves.

Shapes: G groups of rows, T rows of a group, I inputs, O outputs.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flexmoe_core.privacy import outer_products
from flexmoe_core.privacy.outer_products import squared_norms
from tests.flexmoe_core.cohorts import generator


def formed(inputs_GTI: Tensor, gradients_GTO: Tensor, weight: bool, bias: bool) -> Tensor:
    """In float64, one group after the other."""
    norms = []
    for inputs_TI, gradients_TO in zip(inputs_GTI.double(), gradients_GTO.double(), strict=True):
        of_weight, of_bias = (inputs_TI.T @ gradients_TO).square().sum(), gradients_TO.sum(dim=0).square().sum()
        norms.append(weight * of_weight + bias * of_bias)
    return torch.stack(norms)


@given(
    groups=st.integers(1, 5),
    rows=st.integers(1, 12),
    width_in=st.integers(1, 12),
    width_out=st.integers(1, 12),
    which=st.sampled_from([(True, True), (True, False), (False, True)]),
    at_once=st.sampled_from([1, 100, 1 << 20]),
)
def test_both_ways_equal_the_sums(
    groups: int, rows: int, width_in: int, width_out: int, which: tuple[bool, bool], at_once: int
) -> None:
    inputs = torch.randn(groups, rows, width_in, generator=generator(), dtype=torch.float64)
    gradients = torch.randn(groups, rows, width_out, generator=generator(1), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer_products, "AT_ONCE", at_once)
        found_G = squared_norms(inputs, gradients, *which)
    assert torch.allclose(found_G, formed(inputs, gradients, *which), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.1])
def test_a_norm_of_terms_that_cancel_is_never_too_small(bias: bool, size: float) -> None:
    """Pairs of rows of opposite sign: what is left of the sum is far below what a Gram matrix can tell in float32."""
    inputs_GTI = torch.randn(200, 16, 64, generator=generator())
    gradients_GTO = torch.randn(200, 16, 64, generator=generator(1))
    inputs_GTI[:, 1::2] = inputs_GTI[:, ::2]
    gradients_GTO[:, 1::2] = -gradients_GTO[:, ::2] * (1 + size)
    found_G = squared_norms(inputs_GTI, gradients_GTO, True, bias).double()
    true_G = formed(inputs_GTI, gradients_GTO, True, bias)
    assert bool((found_G >= true_G * (1 - 1e-4)).all())
    if size == 0.1:
        assert bool((found_G <= true_G * 1.1).all())


def test_padding_counts_for_nothing() -> None:
    inputs = torch.randn(3, 5, 64, generator=generator())
    gradients = torch.randn(3, 5, 64, generator=generator(1))
    padded = [torch.cat([x, torch.zeros(3, 3, 64)], dim=1) for x in (inputs, gradients)]
    assert torch.allclose(squared_norms(*padded, True, True), squared_norms(inputs, gradients, True, True), rtol=1e-4)
