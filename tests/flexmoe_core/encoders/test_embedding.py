import pytest
import torch

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.encoders.registry import build_encoder
from flexmoe_core.model import ModalityInput, build_model
from flexmoe_core.settings import ModelSettings

SIZE = 7
HIDDEN = pytest.mark.parametrize("hidden", [0, 5])


def tiny(hidden: int) -> ModelSettings:
    return ModelSettings(
        tokens=3, width=8, heads=2, experts=2, expert_width=8, encoder_hidden=hidden, encoder_dropout=0.5
    )


def encoder(hidden: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder("embedding", (SIZE,), tiny(hidden))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@HIDDEN
@pytest.mark.parametrize("patients", [0, 1, 4])
def test_a_vector_becomes_tokens(hidden: int, patients: int) -> None:
    tokens_BPD = encoder(hidden)(torch.randn(patients, SIZE, generator=generator()), None)
    assert tokens_BPD.shape == (patients, 3, 8)
    assert tokens_BPD.isfinite().all()


@HIDDEN
def test_every_number_and_every_parameter_has_a_gradient(hidden: int) -> None:
    module, x_BF = encoder(hidden), torch.randn(4, SIZE, generator=generator(), requires_grad=True)
    module(x_BF, None).square().sum().backward()
    assert x_BF.grad is not None
    assert (x_BF.grad != 0).all()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_patients_do_not_touch_each_other() -> None:
    module, x_BF = encoder(5), torch.randn(4, SIZE, generator=generator())
    poisoned_BF = x_BF.clone()
    poisoned_BF[2] = torch.nan
    clean_BPD, found_BPD = module(x_BF, None), module(poisoned_BF, None)
    assert torch.allclose(found_BPD[[0, 1, 3]], clean_BPD[[0, 1, 3]])
    assert found_BPD[2].isnan().all()


def test_dropout_is_drawn_from_the_generator_alone() -> None:
    module, x_BF = encoder(5), torch.randn(4, SIZE, generator=generator())
    state = torch.get_rng_state()
    one, same, other = (module(x_BF, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(module(x_BF, None), module(x_BF, None))
    assert torch.equal(torch.get_rng_state(), state)


def test_vectors_of_patients_who_lack_the_modality_are_never_read() -> None:
    """Whatever stands in their rows, outputs and gradients stay what they are."""
    table = CombinationTable.build(2, 2, {"site": {0b11: 9, 0b01: 9}}, 1)
    inputs = [ModalityInput("scan", "embedding", (SIZE,)), ModalityInput("text", "embedding", (2,))]
    model = build_model(["scan", "text"], inputs, 2, table, tiny(5), seed=0)
    observed_BM = torch.tensor([[True, True], [True, False], [False, True]])
    scan_BF, text_BF = torch.randn(3, SIZE, generator=generator()), torch.randn(3, 2, generator=generator())
    found = []
    for poison in (0.0, torch.nan):
        scan_BF[2], text_BF[1] = poison, poison
        cohort = Cohort({"scan": scan_BF, "text": text_BF}, observed_BM, torch.zeros(3, dtype=torch.int64))
        model.zero_grad()
        logits_BY = model(cohort, table.place(cohort.masks_B), specialize=True).logits_BY
        logits_BY.square().sum().backward()
        found.append([logits_BY, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(clean, poisoned) for clean, poisoned in zip(*found, strict=True))
