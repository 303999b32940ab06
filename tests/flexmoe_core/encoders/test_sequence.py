import math

import pytest
import torch

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.encoders.registry import build_encoder
from flexmoe_core.encoders.sequence import GatedRecurrence, SequenceEncoder
from flexmoe_core.model import ModalityInput, build_model
from flexmoe_core.settings import ModelSettings

LONGEST, CHANNELS = 5, 7
LENGTHS = (1, 5, 3, 2)


def tiny(hidden: int = 0, dropout: float = 0.0) -> ModelSettings:
    return ModelSettings(
        tokens=3, width=8, heads=2, experts=2, expert_width=8, encoder_hidden=hidden, encoder_dropout=dropout
    )


def encoder(hidden: int = 0, dropout: float = 0.0, longest: int = LONGEST) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_encoder("sequence", (longest, CHANNELS), tiny(hidden, dropout))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(lengths: tuple[int, ...] = LENGTHS, padding: float = 0.0) -> torch.Tensor:
    x_BTC = torch.randn(len(lengths), LONGEST, CHANNELS, generator=generator())
    x_BTC[..., 0] = 1.0
    for patient, length in enumerate(lengths):
        x_BTC[patient, length:] = padding
    return x_BTC


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("patients", [0, 1, 4])
def test_steps_become_tokens(hidden: int, patients: int) -> None:
    tokens_BPD = encoder(hidden)(steps(LENGTHS[:patients]), None)
    assert tokens_BPD.shape == (patients, 3, 8)
    assert tokens_BPD.isfinite().all()


def test_padding_reaches_neither_output_nor_gradient() -> None:
    module = encoder()
    found = []
    for padding in (0.0, torch.nan, torch.inf):
        module.zero_grad()
        tokens_BPD = module(steps(padding=padding), None)
        tokens_BPD.square().sum().backward()
        found.append([tokens_BPD, *(parameter.grad for parameter in module.parameters())])
    for poisoned in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], poisoned, strict=True))


def test_more_padding_changes_nothing() -> None:
    module = encoder()
    longer_BTC = torch.nn.functional.pad(steps(), (0, 0, 0, 9))
    assert torch.allclose(module(longer_BTC, None), module(steps(), None), atol=1e-6)


def test_a_patient_without_any_step_is_finite_and_says_nothing() -> None:
    module = encoder()
    assert isinstance(module, SequenceEncoder)
    assert torch.equal(module(steps((0,)), None)[0], module.projection.bias.expand(3, 8))


def test_the_encoder_equals_its_formulas() -> None:
    """Step by step for one patient: projection, gated recurrent unit, weighted mean over the steps."""
    module = encoder(5)
    assert isinstance(module, SequenceEncoder)
    x_TC, unit = steps((3,))[0, :3], module.recurrence
    state, seen = torch.zeros(5), []
    for x_C in x_TC:
        step = module.step.weight @ x_C + module.step.bias
        reset, keep, new = (unit.enter.weight @ step + unit.enter.bias).chunk(3)
        old_reset, old_keep, old = (unit.recur.weight @ state + unit.recur.bias).chunk(3)
        new = (new + (reset + old_reset).sigmoid() * old).tanh()
        share = (keep + old_keep + unit.keep).sigmoid()
        state = share * state + (1 - share) * new
        seen.append(step + state)
    for token, query in enumerate(module.query.weight):
        share = torch.stack([query @ one / math.sqrt(5) for one in seen]).softmax(dim=0)
        pooled = sum(part * one for part, one in zip(share, seen, strict=True))
        expected = module.projection.weight @ pooled + module.projection.bias
        assert torch.allclose(module(x_TC[None], None)[0, token], expected, atol=1e-6)


def test_the_recurrence_without_its_own_memory_bias_is_that_of_torch() -> None:
    """Same unit as torch.nn.GRU, whose gates stand in the same order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own, reference = GatedRecurrence(6, 1), torch.nn.GRU(6, 6, batch_first=True)
    for name in ("weight", "bias"):
        setattr(own.enter, name, reference.get_parameter(f"{name}_ih_l0"))
        setattr(own.recur, name, reference.get_parameter(f"{name}_hh_l0"))
    x_BTH = torch.randn(3, 9, 6, generator=generator())
    assert torch.allclose(own(x_BTH), reference(x_BTH)[0], atol=1e-6)


def test_the_order_of_steps_counts() -> None:
    x_BTC = steps((5,))
    assert not torch.allclose(encoder()(x_BTC, None), encoder()(x_BTC.flip(dims=(1,)), None), atol=1e-3)


def test_every_channel_and_every_parameter_has_a_gradient() -> None:
    module, x_BTC = encoder(5), steps().requires_grad_()
    module(x_BTC, None).square().sum().backward()
    assert x_BTC.grad is not None
    assert torch.equal((x_BTC.grad != 0).all(dim=2), x_BTC[..., 0] == 1)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_gradients_of_single_patients_can_be_taken_at_once() -> None:
    module, x_BTC = encoder(), steps()
    weights: dict[str, torch.Tensor] = dict(module.named_parameters())

    def loss(weights: dict[str, torch.Tensor], x_TC: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = torch.func.functional_call(module, weights, (x_TC[None], None))
        return tokens.square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x_BTC)
    for patient, x_TC in enumerate(x_BTC):
        own = torch.func.grad(loss)(weights, x_TC)
        assert all(torch.allclose(found[name][patient], own[name], atol=1e-5) for name in own)


def test_dropout_is_drawn_from_the_generator_alone() -> None:
    module, x_BTC = encoder(dropout=0.5), steps()
    state = torch.get_rng_state()
    one, same, other = (module(x_BTC, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(module(x_BTC, None), module(x_BTC, None))
    assert torch.equal(torch.get_rng_state(), state)


def test_products_in_bfloat16_train_it_too() -> None:
    module = encoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens_BPD = module(steps(), None)
    tokens_BPD.float().square().sum().backward()
    assert torch.allclose(tokens_BPD.float(), module(steps(), None), atol=0.05)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_all_weights_come_from_the_seed_of_the_model_and_who_lacks_the_sequence_is_never_read() -> None:
    table = CombinationTable.build(2, 2, {"site": {0b11: 9, 0b01: 9}}, 1)
    inputs = [ModalityInput("labs", "sequence", (LONGEST, CHANNELS)), ModalityInput("text", "embedding", (2,))]
    observed_BM = torch.tensor([[True, True], [True, False], [True, True], [False, True]])
    labs_BTC, text_BF = steps(), torch.randn(4, 2, generator=generator())
    found = []
    for poison, global_seed in ((0.0, 1), (torch.nan, 2)):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            model = build_model(["labs", "text"], inputs, 2, table, tiny(), seed=0)
        labs_BTC[3], text_BF[1] = poison, poison
        cohort = Cohort({"labs": labs_BTC, "text": text_BF}, observed_BM, torch.zeros(4, dtype=torch.int64))
        logits_BY = model(cohort, table.place(cohort.masks_B), specialize=True).logits_BY
        logits_BY.square().sum().backward()
        found.append([logits_BY, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(clean, poisoned) for clean, poisoned in zip(*found, strict=True))
