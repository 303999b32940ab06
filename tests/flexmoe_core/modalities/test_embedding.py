import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.modalities.embedding import EmbeddingModality, EmbeddingPreprocessing


def test_the_limits_of_the_range_become_minus_2_and_2_and_nothing_is_clipped() -> None:
    shared = EmbeddingModality(name="scan", encoder="shared", size=3, range=(0, 8))
    x_BF = shared.preprocessing.encode(torch.tensor([[0.0, 8.0, 4.0], [16.0, -8.0, 6.0]], dtype=torch.float64))
    assert x_BF.dtype == torch.float32
    assert x_BF.tolist() == [[-2, 2, 0], [6, -6, 1]]


def test_the_inputs_of_a_local_encoder_are_known_at_its_site_only() -> None:
    with pytest.raises(ValueError, match="at its site only"):
        _ = EmbeddingModality(name="scan", encoder="local").preprocessing


@given(st.integers(2, 20), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_fitted_scale_standardizes_each_number(patients: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale_F = torch.logspace(-6, 6, size, dtype=torch.float64)
    values_BF = torch.randn(patients, size, generator=generator, dtype=torch.float64) * scale_F + 3 * scale_F
    fitted = EmbeddingPreprocessing.fitted(values_BF)
    x_BF = fitted.encode(values_BF)
    assert fitted.shape == (size,)
    assert x_BF.mean(dim=0).abs().max() < 1e-5
    assert (x_BF.std(dim=0, correction=0) - 1).abs().max() < 1e-5
    again = EmbeddingPreprocessing.model_validate_json(fitted.model_dump_json())
    assert torch.equal(again.encode(values_BF), x_BF)


@pytest.mark.parametrize("patients", [0, 1, 3])
def test_constant_and_absent_numbers_keep_a_finite_scale(patients: int) -> None:
    values_BF = torch.full((patients, 2), 5.0, dtype=torch.float64)
    assert EmbeddingPreprocessing.fitted(values_BF).encode(values_BF).tolist() == [[0, 0]] * patients
