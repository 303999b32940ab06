"""Chance of one generator and chance of each patient.

Shapes: B patients, T tokens, E experts.
"""

import pytest
import torch

from flexmoe_core.chance import normal_like, random_integers
from flexmoe_core.dropout import draw_lots
from flexmoe_core.experts import Experts, mix
from flexmoe_core.privacy.patient_chance import SecretChance, uniform_lots
from tests.flexmoe_core.cohorts import generator, randomize
from tests.flexmoe_core.privacy.patients import FixedChance, SeededSource

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("each", [0, 1, 5, 16])
def test_a_patients_integers_are_his_own(dtype: torch.dtype, each: int) -> None:
    together, apart = (
        [random_integers(FixedChance(numbers), torch.Size((len(numbers) * each, 3)), dtype, CPU) for numbers in some]
        for some in ([(7, 8, 9)], [(7,), (8,), (9,)])
    )
    assert torch.equal(together[0], torch.cat(apart))
    assert together[0].dtype == dtype


def test_nobody_has_none() -> None:
    assert random_integers(FixedChance([0]), torch.Size((0, 4)), torch.int8, CPU).shape == (0, 4)


def test_bytes_are_uniform() -> None:
    chance = SecretChance(SeededSource(), 10)
    counts = torch.bincount(random_integers(chance, torch.Size((10, 25600)), torch.int8, CPU).flatten().long() + 128)
    assert len(counts) == 256
    assert float((counts - 1000).abs().max()) < 6 * 1000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_gates_is_standard_normal(dtype: torch.dtype) -> None:
    drawn = normal_like(SecretChance(SeededSource(), 100), torch.empty(100000, 4, dtype=dtype))
    assert drawn.dtype == dtype
    assert drawn.isfinite().all()
    flat = drawn.flatten().double().sort().values
    expected = torch.special.ndtr(flat)
    found = torch.arange(1, len(flat) + 1) / len(flat)
    assert float((expected - found).abs().max()) < 2.5 / len(flat) ** 0.5  # Kolmogorov and Smirnov, 1 in 100,000
    assert float(torch.corrcoef(drawn.T.double()).fill_diagonal_(0).abs().max()) < 0.02


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_at_the_rate(rate: float) -> None:
    lots = draw_lots(torch.Size((1000, 100)), rate, SecretChance(SeededSource(), 50), CPU)
    assert lots is not None
    kept = lots.kept(torch.float64)
    assert abs(float((kept == 0).double().mean()) - rate) < 0.006
    assert abs(float(kept.mean()) - 1) < 0.02


def test_lots_of_modalities_are_uniform() -> None:
    lots_BM = uniform_lots(SecretChance(SeededSource(), 20000), 3)
    assert lots_BM.shape == (20000, 3)
    assert lots_BM.dtype == torch.float64
    assert 0 <= float(lots_BM.min()) < 0.001 and 0.999 < float(lots_BM.max()) < 1
    assert abs(float(lots_BM.mean()) - 0.5) < 0.01


def test_experts_drop_the_same_units_of_a_patient_whoever_else_is_routed() -> None:
    """Rows are sorted by expert, and lots drawn in the order of the patients follow them."""
    experts = Experts(4, 8, 8, generator())
    randomize(experts)
    x_TD, gates_TK = torch.randn(6, 8, generator=generator()), torch.full((6, 2), 0.5)
    chosen_TK = torch.tensor([[3, 0], [1, 2], [0, 3], [2, 1], [1, 0], [3, 2]])

    def y_TD(patients: list[int]) -> torch.Tensor:
        rows = torch.tensor([2 * patient + token for patient in patients for token in (0, 1)])
        chance = FixedChance(patients)
        return mix(x_TD[rows], chosen_TK[rows], gates_TK[rows], experts.weights(), 0.5, chance)

    together = y_TD([0, 1, 2])
    apart = torch.cat([y_TD([patient]) for patient in range(3)])
    assert torch.allclose(together, apart, atol=1e-6)
    assert not torch.allclose(together, mix(x_TD, chosen_TK, gates_TK, experts.weights()), atol=1e-2)
