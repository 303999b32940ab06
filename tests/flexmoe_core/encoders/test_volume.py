import pytest
import torch

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.encoders.registry import build_encoder
from flexmoe_core.encoders.volume import PATIENTS_AT_ONCE, coarse_means
from flexmoe_core.model import FlexMoe, ModalityInput, build_model
from flexmoe_core.settings import ModelSettings

SHAPE = (8, 9, 17)
HIDDEN = pytest.mark.parametrize("hidden", [0, 5])
TABLE = CombinationTable.build(2, 2, {"site": {0b11: 9, 0b01: 9}}, 1)


def tiny(hidden: int = 0) -> ModelSettings:
    return ModelSettings(
        tokens=3,
        width=8,
        heads=2,
        experts=2,
        expert_width=8,
        encoder_hidden=hidden,
        encoder_dropout=0.5,
        volume_channels=4,
    )


def encoder(hidden: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder("volume", shape, tiny(hidden))


def model(seed: int) -> FlexMoe:
    inputs = [ModalityInput("scan", "volume", SHAPE), ModalityInput("text", "embedding", (2,))]
    return build_model(["scan", "text"], inputs, 2, TABLE, tiny(5), seed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volumes(patients: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(patients, *shape, generator=generator())


@HIDDEN
@pytest.mark.parametrize("patients", [0, 1, 4])
@pytest.mark.parametrize("shape", [(8, 8, 8), SHAPE, (16, 33, 12), (8, 8, 64)])
def test_a_volume_becomes_tokens(hidden: int, patients: int, shape: tuple[int, ...]) -> None:
    module = encoder(hidden, shape)
    tokens_BPD = module(volumes(patients, shape), generator())
    assert tokens_BPD.shape == (patients, 3, 8)
    assert tokens_BPD.isfinite().all()
    tokens_BPD.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@HIDDEN
def test_every_voxel_and_every_parameter_has_a_gradient(hidden: int) -> None:
    module, x_BDHW = encoder(hidden), volumes(4).requires_grad_()
    module(x_BDHW, None).square().sum().backward()
    assert x_BDHW.grad is not None
    assert (x_BDHW.grad != 0).all()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_patients_do_not_touch_each_other_however_many_there_are() -> None:
    module, x_BDHW = encoder(5), volumes(PATIENTS_AT_ONCE + 2)
    one_by_one_BPD = torch.cat([module(x_DHW[None], None) for x_DHW in x_BDHW])
    assert torch.allclose(module(x_BDHW, None), one_by_one_BPD, atol=1e-5)
    x_BDHW[2] = torch.nan
    found_BPD = module(x_BDHW, None)
    assert found_BPD[2].isnan().all()
    assert found_BPD.isnan().sum() == found_BPD[2].numel()


@pytest.mark.parametrize("level", [-2.0, 0.0, 3.0])
def test_how_bright_an_even_image_is_stays_visible(level: float) -> None:
    module = encoder()
    even_BDHW = torch.stack([torch.full(SHAPE, level), torch.full(SHAPE, level + 1)])
    assert torch.allclose(coarse_means(even_BDHW), torch.tensor([[level], [level + 1]]).expand(2, 64), atol=1e-5)
    dark_PD, bright_PD = module(even_BDHW, None)
    assert (dark_PD - bright_PD).abs().max() > 0.01


def test_coarse_means_are_those_of_the_cells() -> None:
    x_BDHW = volumes(2, (8, 12, 16))
    cells = x_BDHW.reshape(2, 4, 2, 4, 3, 4, 4).mean(dim=(2, 4, 6))
    assert torch.allclose(coarse_means(x_BDHW), cells.flatten(1), atol=1e-6)


def test_dropout_is_drawn_from_the_generator_alone() -> None:
    module, x_BDHW = encoder(5), volumes(4)
    state = torch.get_rng_state()
    one, same, other = (module(x_BDHW, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(module(x_BDHW, None), module(x_BDHW, None))
    assert torch.equal(torch.get_rng_state(), state)


def test_convolutions_come_from_the_models_generator() -> None:
    """Whatever the global generator does: the same seed gives the same weights, another seed others."""
    first = model(0).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again, other = model(0).state_dict(), model(1).state_dict()
    convolutions = [name for name in first if name.endswith("convolution.weight")]
    assert convolutions
    for name, value in first.items():
        assert torch.equal(value, again[name])
    for name in convolutions:
        assert not torch.equal(first[name], other[name])
        assert first[name].std() * first[name][0].numel() ** 0.5 == pytest.approx(1, abs=0.25)


def test_volumes_of_patients_who_lack_the_modality_are_never_read() -> None:
    observed_BM = torch.tensor([[True, True], [True, False], [False, True]])
    scan_BDHW, text_BF, found = volumes(3), torch.randn(3, 2, generator=generator()), []
    network = model(0)
    for poison in (0.0, torch.nan):
        scan_BDHW[2] = poison
        cohort = Cohort({"scan": scan_BDHW, "text": text_BF}, observed_BM, torch.zeros(3, dtype=torch.int64))
        network.zero_grad()
        logits_BY = network(cohort, TABLE.place(cohort.masks_B), specialize=True).logits_BY
        logits_BY.square().sum().backward()
        found.append([logits_BY, *(p.grad for p in network.parameters() if p.grad is not None)])
    assert all(torch.equal(clean, poisoned) for clean, poisoned in zip(*found, strict=True))
