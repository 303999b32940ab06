"""Shapes: B patients, N tokens per patient, D width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexmoe_core.pooling import AttentionPooling, ConcatPooling
from tests.flexmoe_core.cohorts import generator, random_cohort, random_model, randomize, table_of


def draw_tokens(patients: int, tokens: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(patients, tokens, width, generator=generator(seed), dtype=torch.float64)


def test_concat_puts_the_mean_tokens_of_the_modalities_side_by_side() -> None:
    x_BND = draw_tokens(2, 6, 4)
    for b, pooled in enumerate(ConcatPooling(3, 4)(x_BND)):
        torch.testing.assert_close(pooled, torch.cat([x_BND[b, 2 * m : 2 * m + 2].mean(dim=0) for m in range(3)]))


@settings(max_examples=20, deadline=None)
@given(
    patients=st.integers(0, 4), tokens=st.integers(1, 9), heads=st.integers(1, 3), size=st.integers(1, 3),
    seed=st.integers(0, 100),
)  # fmt: skip
def test_each_head_weighs_its_part_of_all_tokens(
    patients: int, tokens: int, heads: int, size: int, seed: int
) -> None:
    width = heads * size
    pooling, x_BND = AttentionPooling(width, heads).double(), draw_tokens(patients, tokens, width, seed)
    randomize(pooling, seed)
    expected = torch.zeros(patients, width, dtype=torch.float64)
    for b in range(patients):
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = torch.stack([pooling.query[head] @ token / width**0.5 for token in x_BND[b]])
            expected[b, own] = sum(
                weight * token[own] for weight, token in zip(scores.softmax(dim=0), x_BND[b], strict=True)
            )
    torch.testing.assert_close(pooling(x_BND), expected, rtol=1e-10, atol=1e-12)


def test_a_fresh_query_takes_the_plain_mean() -> None:
    x_BND = draw_tokens(3, 5, 8)
    torch.testing.assert_close(AttentionPooling(8, 2).double()(x_BND), x_BND.mean(dim=1))


def test_gradients_are_right() -> None:
    pooling = AttentionPooling(4, 2).double()
    randomize(pooling)

    def pooled(query: Tensor, x_BND: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(pooling, {"query": query}, (x_BND,))
        return found

    assert torch.autograd.gradcheck(pooled, (pooling.query, draw_tokens(2, 3, 4).requires_grad_()))


@pytest.mark.parametrize("modalities", [1, 4, 12])
def test_the_head_of_attention_pooling_does_not_know_how_many_modalities_there_are(modalities: int) -> None:
    table = table_of([1], modalities)
    model = random_model(table, pooling="attention")
    assert model.head.weight.shape == random_model(table_of([1], 2), pooling="attention").head.weight.shape
    cohort = random_cohort([1, (1 << modalities) - 1], modalities)
    output = model(cohort, table.place(cohort.masks_B), specialize=True)
    assert output.logits_BY.isfinite().all()
