"""Shapes: B patients, N tokens per patient, D width."""

import pytest
import torch

from flexmoe_core.mixture import RoutingPlan
from flexmoe_core.settings import ModelSettings
from flexmoe_core.trunk import Attention, TrunkLayer, is_sparse
from tests.flexmoe_core.cohorts import TINY, generator, randomize

WIDTH = TINY["width"]
X_BND = torch.randn(3, 5, WIDTH, generator=generator(7))
PLAN = RoutingPlan(torch.tensor([0, 1, 2]), torch.tensor([False, True, True]), None)
SPARSE = pytest.mark.parametrize("sparse", [True, False])


def random_layer(sparse: bool, dropout: float = 0.0, feed_forward: str = "mixture") -> TrunkLayer:
    settings = ModelSettings(**{**TINY, "dropout": dropout, "feed_forward": feed_forward})
    layer = TrunkLayer(settings, sparse, generator())
    randomize(layer, seed=1)
    return layer


@SPARSE
def test_with_silent_attention_and_feed_forward_the_input_passes_unchanged(sparse: bool) -> None:
    layer = random_layer(sparse)
    silenced = ("attention.project_out", "mixture.experts.w2", "mixture.experts.b2", "dense.contract")
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith(silenced):
                parameter.zero_()
    y_BND, _, _ = layer(X_BND, PLAN, generator())
    assert torch.equal(y_BND, X_BND)


@SPARSE
def test_both_branches_are_added_to_their_normed_input(sparse: bool) -> None:
    layer = random_layer(sparse)
    middle_BND = X_BND + layer.attention(layer.attention_norm(X_BND))
    normed_BND = layer.feed_forward_norm(middle_BND)
    if layer.mixture is not None:
        branch_BND = layer.mixture(normed_BND, PLAN, None)[0]
    else:
        assert layer.dense is not None
        branch_BND = layer.dense(normed_BND, None)
    y_BND, losses, use = layer(X_BND, PLAN, None)
    torch.testing.assert_close(y_BND, middle_BND + branch_BND)
    assert ((losses is not None), (use is not None)) == (sparse, sparse)


def test_attention_is_softmax_over_all_tokens_of_the_patient() -> None:
    attention = Attention(WIDTH, heads=2).double()
    randomize(attention)
    x_BND, size = X_BND.double(), WIDTH // 2
    query, key, value = attention.project_in(x_BND).split(WIDTH, dim=2)
    heads = []
    for head in range(2):
        own = slice(head * size, (head + 1) * size)
        scores_BNN = query[:, :, own] @ key[:, :, own].transpose(1, 2) / size**0.5
        heads.append(scores_BNN.softmax(dim=2) @ value[:, :, own])
    torch.testing.assert_close(attention(x_BND), attention.project_out(torch.cat(heads, dim=2)))


@SPARSE
def test_dropout_is_drawn_from_the_given_generator_alone(sparse: bool) -> None:
    layer, state = random_layer(sparse, dropout=0.5), torch.random.get_rng_state()
    first, again = (layer(X_BND, PLAN, generator(3))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, layer(X_BND, PLAN, generator(4))[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@SPARSE
def test_dense_feed_forwards_have_the_hidden_width_of_what_they_replace(sparse: bool) -> None:
    dense = random_layer(sparse, feed_forward="dense").dense
    assert dense is not None
    assert dense.expand.out_features == TINY["expert_width"] * (TINY["active_experts"] if sparse else 1)


def test_every_second_layer_is_sparse() -> None:
    assert [is_sparse(layer) for layer in range(4)] == [True, False, True, False]
