import pytest
import torch

from flexmoe_core.bank import TableBank, ZeroBank
from flexmoe_core.combinations import NO_SLOT
from tests.flexmoe_core.cohorts import gradients, randomize

MODALITIES, SLOTS, TOKENS, WIDTH = 3, 4, 2, 5
SLOTS_BM = torch.tensor([[NO_SLOT, 0, 1], [NO_SLOT, NO_SLOT, NO_SLOT], [2, NO_SLOT, 3], [NO_SLOT, 0, NO_SLOT]])


@pytest.fixture
def bank() -> TableBank:
    bank = TableBank(MODALITIES, SLOTS, TOKENS, WIDTH).double()
    randomize(bank)
    return bank


def test_a_token_is_the_default_plus_its_row(bank: TableBank) -> None:
    tokens_BMPD = bank(SLOTS_BM)
    for b, slots in enumerate(SLOTS_BM.tolist()):
        for m, slot in enumerate(slots):
            expected = bank.default[m] + (bank.residual[slot] if slot != NO_SLOT else 0)
            assert torch.equal(tokens_BMPD[b, m], expected)


@pytest.mark.parametrize("slot", range(SLOTS))
def test_a_row_is_used_where_it_is_named_and_nowhere_else(bank: TableBank, slot: int) -> None:
    before = bank(SLOTS_BM)
    with torch.no_grad():
        bank.residual[slot] += 1.0
    changed_BM = (bank(SLOTS_BM) != before).flatten(2).any(dim=2)
    assert torch.equal(changed_BM, SLOTS_BM.eq(slot))


def test_rows_learn_from_their_users_and_defaults_from_all(bank: TableBank) -> None:
    found = gradients(bank, bank(SLOTS_BM).sum())
    users_S = torch.tensor([float(SLOTS_BM.eq(slot).sum()) for slot in range(SLOTS)]).double()
    assert torch.equal(found["residual"], users_S[:, None, None].expand_as(bank.residual))
    assert (found["default"] == len(SLOTS_BM)).all()


def test_gradients_are_right(bank: TableBank) -> None:
    def tokens(default: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(
            bank, {"default": default, "residual": residual}, (SLOTS_BM,)
        )
        return found

    assert torch.autograd.gradcheck(tokens, (bank.default, bank.residual))


def test_tokens_that_nobody_trained_are_those_of_zero_fill() -> None:
    fresh, zero = TableBank(MODALITIES, SLOTS, TOKENS, WIDTH), ZeroBank(MODALITIES, TOKENS, WIDTH)
    assert torch.equal(fresh(SLOTS_BM), zero(SLOTS_BM))
    assert (fresh.learns, zero.learns) == (True, False)


@pytest.mark.parametrize("slots", [0, SLOTS])
def test_nobody_and_a_table_without_rows(slots: int) -> None:
    bank = TableBank(MODALITIES, slots, TOKENS, WIDTH)
    randomize(bank)
    assert bank(SLOTS_BM[:0]).shape == (0, MODALITIES, TOKENS, WIDTH)
    alone_BM = torch.full((2, MODALITIES), NO_SLOT)
    assert torch.equal(bank(alone_BM)[1], bank.default)


def test_zero_fill_has_nothing_to_learn() -> None:
    bank = ZeroBank(MODALITIES, TOKENS, WIDTH)
    assert torch.equal(bank(SLOTS_BM), torch.zeros(len(SLOTS_BM), MODALITIES, TOKENS, WIDTH))
    assert list(bank.parameters()) == []
