"""Shapes: B patients, M modalities, P tokens, D width, S residual rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flexmoe_core.bank import Bank, CompositionalBank, TableBank, ZeroBank
from flexmoe_core.combinations import NO_SLOT
from tests.flexmoe_core.cohorts import generator, gradients, observed, randomize

MODALITIES, SLOTS, TOKENS, WIDTH = 3, 4, 2, 5
SLOTS_BM = torch.tensor([[NO_SLOT, 0, 1], [NO_SLOT, NO_SLOT, NO_SLOT], [2, NO_SLOT, 3], [NO_SLOT, 0, NO_SLOT]])
OBSERVED_BM = observed([0b001, 0b111, 0b010, 0b101], MODALITIES)


@pytest.fixture
def bank() -> TableBank:
    bank = TableBank(MODALITIES, SLOTS, TOKENS, WIDTH).double()
    randomize(bank)
    return bank


@pytest.fixture
def compositional() -> CompositionalBank:
    bank = CompositionalBank(MODALITIES, TOKENS, WIDTH).double()
    randomize(bank)
    return bank


def token_of(bank: CompositionalBank, missing: int, combination: list[int]) -> Tensor:
    """u_m + (1 / n) * sum over observed j of v_{m,j}, as it is written."""
    token_PD: Tensor = bank.default[missing]
    for j in combination:
        token_PD = token_PD + bank.residual[j * len(bank.default) + missing] / len(combination)
    return token_PD


def test_a_token_is_the_default_plus_its_row(bank: TableBank) -> None:
    tokens_BMPD = bank(SLOTS_BM, OBSERVED_BM)
    for b, slots in enumerate(SLOTS_BM.tolist()):
        for m, slot in enumerate(slots):
            expected = bank.default[m] + (bank.residual[slot] if slot != NO_SLOT else 0)
            assert torch.equal(tokens_BMPD[b, m], expected)


@pytest.mark.parametrize("slot", range(SLOTS))
def test_a_row_is_used_where_it_is_named_and_nowhere_else(bank: TableBank, slot: int) -> None:
    before = bank(SLOTS_BM, OBSERVED_BM)
    with torch.no_grad():
        bank.residual[slot] += 1.0
    changed_BM = (bank(SLOTS_BM, OBSERVED_BM) != before).flatten(2).any(dim=2)
    assert torch.equal(changed_BM, SLOTS_BM.eq(slot))
    assert bank.users(SLOTS_BM, OBSERVED_BM)[slot] == changed_BM.sum()


def test_rows_learn_from_their_users_and_defaults_from_all(bank: TableBank) -> None:
    found = gradients(bank, bank(SLOTS_BM, OBSERVED_BM).sum())
    users_S = bank.users(SLOTS_BM, OBSERVED_BM)
    assert users_S.tolist() == [2, 1, 1, 1]
    assert torch.equal(found["residual"], users_S[:, None, None].expand_as(bank.residual))
    assert (found["default"] == len(SLOTS_BM)).all()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), modalities=st.integers(1, 7), seed=st.integers(0, 1000))
def test_a_composed_token_is_the_default_plus_the_mean_of_its_pairs(
    data: st.DataObject, modalities: int, seed: int
) -> None:
    masks = data.draw(st.lists(st.integers(0, (1 << modalities) - 1), max_size=6))
    bank = CompositionalBank(modalities, TOKENS, WIDTH).double()
    randomize(bank, seed)
    observed_BM = observed(masks, modalities)
    tokens_BMPD = bank(torch.full(observed_BM.shape, NO_SLOT), observed_BM)
    assert tokens_BMPD.shape == (len(masks), modalities, TOKENS, WIDTH)
    expected = torch.zeros_like(tokens_BMPD)
    for b, mask in enumerate(masks):
        combination = [j for j in range(modalities) if mask >> j & 1]
        for m in range(modalities):
            expected[b, m] = token_of(bank, m, combination)
    torch.testing.assert_close(tokens_BMPD, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(expected.shape, generator=generator(seed), dtype=torch.float64)
    found, others = gradients(bank, (tokens_BMPD * weight).sum()), gradients(bank, (expected * weight).sum())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-12, atol=1e-12)


def test_a_pair_is_used_by_who_observes_the_one_and_lacks_the_other(compositional: CompositionalBank) -> None:
    users_S = compositional.users(SLOTS_BM, OBSERVED_BM).tolist()
    assert len(users_S) == compositional.slots == MODALITIES**2
    missing_BM11 = ~OBSERVED_BM[:, :, None, None]
    before = compositional(SLOTS_BM, OBSERVED_BM) * missing_BM11
    for j in range(MODALITIES):
        for m in range(MODALITIES):
            row = j * MODALITIES + m
            kept_PD = compositional.residual[row].detach().clone()
            with torch.no_grad():
                compositional.residual[row] += 1.0
            changed_BM = (compositional(SLOTS_BM, OBSERVED_BM) * missing_BM11 != before).flatten(2).any(dim=2)
            with torch.no_grad():
                compositional.residual[row] = kept_PD
            who_B = OBSERVED_BM[:, j] & ~OBSERVED_BM[:, m]
            assert changed_BM.nonzero().tolist() == [[b, m] for b in who_B.nonzero().flatten().tolist()]
            assert users_S[row] == who_B.sum()


def test_a_composed_token_is_no_larger_for_who_observes_more() -> None:
    modalities = 30
    bank = CompositionalBank(modalities, TOKENS, WIDTH)
    with torch.no_grad():
        bank.residual.fill_(1.0)
    for mask in (0b10, 0b110, (1 << modalities) - 2):
        token_PD = bank(torch.full((1, modalities), NO_SLOT), observed([mask], modalities))[0, 0]
        torch.testing.assert_close(token_PD, torch.ones(TOKENS, WIDTH))


def test_memory_of_composed_tokens_follows_modalities_and_not_combinations() -> None:
    bank = CompositionalBank(30, 16, 128)
    assert sum(parameter.numel() for parameter in bank.parameters()) == (30 + 30**2) * 16 * 128 < 5_000_000


@pytest.mark.parametrize("kind", ["bank", "compositional"])
def test_gradients_are_right(kind: str, request: pytest.FixtureRequest) -> None:
    bank: TableBank | CompositionalBank = request.getfixturevalue(kind)

    def tokens(default: Tensor, residual: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(
            bank, {"default": default, "residual": residual}, (SLOTS_BM, OBSERVED_BM)
        )
        return found

    assert torch.autograd.gradcheck(tokens, (bank.default, bank.residual))


def test_tokens_that_nobody_trained_are_those_of_zero_fill() -> None:
    zero = ZeroBank(MODALITIES, TOKENS, WIDTH)
    for fresh in (TableBank(MODALITIES, SLOTS, TOKENS, WIDTH), CompositionalBank(MODALITIES, TOKENS, WIDTH)):
        assert torch.equal(fresh(SLOTS_BM, OBSERVED_BM), zero(SLOTS_BM, OBSERVED_BM))
        assert (fresh.learns, zero.learns) == (True, False)


@pytest.mark.parametrize("slots", [0, SLOTS])
def test_nobody_and_a_table_without_rows(slots: int) -> None:
    bank = TableBank(MODALITIES, slots, TOKENS, WIDTH)
    randomize(bank)
    assert bank(SLOTS_BM[:0], OBSERVED_BM[:0]).shape == (0, MODALITIES, TOKENS, WIDTH)
    assert bank.users(SLOTS_BM[:0], OBSERVED_BM[:0]).tolist() == [0] * slots
    alone_BM = torch.full((2, MODALITIES), NO_SLOT)
    assert torch.equal(bank(alone_BM, OBSERVED_BM[:2])[1], bank.default)


@pytest.mark.parametrize("slots_BM", [SLOTS_BM, torch.zeros_like(SLOTS_BM)])
def test_zero_fill_has_nothing_to_learn(slots_BM: Tensor) -> None:
    bank: Bank = ZeroBank(MODALITIES, TOKENS, WIDTH)
    assert torch.equal(bank(slots_BM, OBSERVED_BM), torch.zeros(len(SLOTS_BM), MODALITIES, TOKENS, WIDTH))
    assert list(bank.parameters()) == []
    assert bank.users(slots_BM, OBSERVED_BM).shape == (0,)
