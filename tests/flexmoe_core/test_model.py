"""The promises of the whole model, in float64 on random parameters."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import NO_SLOT, CombinationTable
from flexmoe_core.features import encode_numeric
from flexmoe_core.modalities.tabular import NumericColumn
from flexmoe_core.model import FlexMoe, ModalityInput, Output, build_model, load_parameters
from tests.flexmoe_core.cohorts import (
    FEATURES,
    generator,
    gradients,
    modality_names,
    random_cohort,
    random_model,
    snapshot,
    table_of,
    tiny,
)

MODALITIES = 3
MASKS = (0b111, 0b011, 0b101, 0b001, 0b111, 0b110, 0b100)
TABLE = table_of([0b011, 0b101, 0b001], MODALITIES)
STAGE = pytest.mark.parametrize("specialize", [False, True])


def run(
    model: FlexMoe,
    cohort: Cohort,
    table: CombinationTable,
    specialize: bool = True,
    seed: int | None = None,
    teaches_B: Tensor | None = None,
) -> Output:
    output: Output = model(
        cohort,
        table.place(cohort.masks_B),
        specialize=specialize,
        teaches_experts_B=teaches_B,
        generator=None if seed is None else generator(seed),
    )
    return output


def objective(output: Output) -> Tensor:
    """Every patient's own weight, so that no gradient cancels."""
    weight_B = torch.arange(1, len(output.logits_BY) + 1).double()
    task = (output.logits_BY.square().sum(dim=1) * weight_B).sum()
    return task + output.losses.balance + output.losses.specialization


def changed(before_BY: Tensor, after_BY: Tensor) -> Tensor:
    """Whose logits differ by more than the order of a sum can explain (B,)."""
    return ~torch.isclose(before_BY, after_BY, rtol=1e-10, atol=1e-10).all(dim=1)


def poisoned(cohort: Cohort, value: float) -> Cohort:
    """The same patients, with the given value wherever a modality is not observed."""
    return replace(
        cohort,
        inputs={
            name: x_BF.masked_fill(~cohort.observed_BM[:, m : m + 1], value)
            for m, (name, x_BF) in enumerate(cohort.inputs.items())
        },
    )


@STAGE
@pytest.mark.parametrize("encoder_hidden", [0, 4])
@pytest.mark.parametrize("seed", [None, 5])
def test_encoders_see_only_what_was_observed(specialize: bool, encoder_hidden: int, seed: int | None) -> None:
    model = random_model(TABLE, encoder_hidden=encoder_hidden, encoder_dropout=0.3)
    cohort = random_cohort(MASKS, MODALITIES)
    clean = run(model, cohort, TABLE, specialize, seed)
    dirty = run(model, poisoned(cohort, torch.nan), TABLE, specialize, seed)
    assert torch.equal(clean.logits_BY, dirty.logits_BY)
    found, others = gradients(model, objective(clean)), gradients(model, objective(dirty))
    for name, gradient in found.items():
        assert torch.equal(gradient, others[name]), name
        assert gradient.isfinite().all(), name


@STAGE
def test_encoders_do_see_what_was_observed(specialize: bool) -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    before_BY = run(model, cohort, TABLE, specialize).logits_BY
    for m, name in enumerate(modality_names(MODALITIES)):
        moved = replace(cohort, inputs={**cohort.inputs, name: cohort.inputs[name] + 1.0})
        after_BY = run(model, moved, TABLE, specialize).logits_BY
        assert torch.equal(changed(before_BY, after_BY), cohort.observed_BM[:, m])


def test_a_missing_value_of_an_observed_modality_is_zero_and_a_flag() -> None:
    column = NumericColumn(name="age", range=(20, 80))
    features_BF = encode_numeric(column, torch.tensor([50.0, torch.nan], dtype=torch.float64))
    assert features_BF.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    table = table_of([1], 1)
    model = build_model(["age"], [ModalityInput("age", "tabular", (2,))], 2, table, tiny(), 0)
    cohort = Cohort({"age": features_BF}, torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))
    logits_BY = run(model, cohort, table).logits_BY
    assert not torch.equal(logits_BY[0], logits_BY[1])


@STAGE
@pytest.mark.parametrize("slot", range(len(TABLE.slots)))
def test_the_bank_row_of_a_patient_is_that_of_combination_and_missing_modality(slot: int, specialize: bool) -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    before_BY = run(model, cohort, TABLE, specialize).logits_BY
    with torch.no_grad():
        model.bank.get_parameter("residual")[slot, :, 0] += 1.0
    changed_B = changed(before_BY, run(model, cohort, TABLE, specialize).logits_BY)
    # The unseen 100 borrows from 101, the nearest that also lacks modality 1.
    users = {TABLE.slots[slot][0]} | ({0b100} if TABLE.slots[slot] == (0b101, 1) else set())
    assert changed_B.tolist() == [mask in users for mask in MASKS]


@pytest.mark.parametrize("missing", range(MODALITIES))
def test_the_default_of_a_modality_serves_everybody_who_lacks_it(missing: int) -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    before_BY = run(model, cohort, TABLE).logits_BY
    with torch.no_grad():
        model.bank.get_parameter("default")[missing, :, 0] += 1.0
    changed_B = changed(before_BY, run(model, cohort, TABLE).logits_BY)
    assert torch.equal(changed_B, ~cohort.observed_BM[:, missing])


def test_imputed_tokens_are_marked_as_such() -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    before_BY = run(model, cohort, TABLE).logits_BY
    with torch.no_grad():
        model.imputed[0] += 1.0
    changed_B = changed(before_BY, run(model, cohort, TABLE).logits_BY)
    assert torch.equal(changed_B, ~cohort.observed_BM.all(dim=1))


def test_a_combination_without_rows_uses_the_default_alone() -> None:
    table = table_of([0b011], MODALITIES)
    placement = table.place(torch.tensor([0b110]))
    assert placement.slots_BM.tolist() == [[NO_SLOT] * 3]
    model, cohort = random_model(table), random_cohort([0b110], MODALITIES)
    found = gradients(model, objective(run(model, cohort, table)))
    assert not found["bank.residual"].any()
    assert [bool(row.any()) for row in found["bank.default"]] == [True, False, False]


def test_all_63_combinations_of_six_modalities_predict() -> None:
    table = table_of([0b111110, 0b000111, 0b000001], 6)
    model = random_model(table)
    cohort = random_cohort(range(1, 64), 6)
    output = run(model, cohort, table)
    assert output.logits_BY.shape == (63, 2)
    assert output.logits_BY.isfinite().all()


@STAGE
@settings(max_examples=10, deadline=None)
@given(masks=st.lists(st.integers(1, 7), min_size=1, max_size=8), seed=st.integers(0, 100))
def test_a_patient_does_not_depend_on_the_others_of_the_batch(masks: list[int], seed: int, specialize: bool) -> None:
    model, cohort = random_model(TABLE, seed), random_cohort(masks, MODALITIES, seed)
    together = run(model, cohort, TABLE, specialize)
    for b in range(len(masks)):
        alone = run(model, cohort.select(torch.tensor([b])), TABLE, specialize)
        torch.testing.assert_close(alone.logits_BY[0], together.logits_BY[b], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.use[0].gates_BE[0], together.use[0].gates_BE[b], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [None, 4])
def test_nothing_is_carried_from_batch_to_batch(seed: int | None) -> None:
    model = random_model(TABLE, dropout=0.5)
    first, second = random_cohort(MASKS, MODALITIES, 1), random_cohort(MASKS[:2], MODALITIES, 2)
    before = run(model, first, TABLE, seed=seed)
    attributes = {name: {key: id(value) for key, value in vars(one).items()} for name, one in model.named_modules()}
    tensors = snapshot(model)
    objective(run(model, second, TABLE, specialize=False, seed=seed)).backward()
    after = run(model, first, TABLE, seed=seed)
    assert torch.equal(before.logits_BY, after.logits_BY)
    assert torch.equal(before.losses.balance, after.losses.balance)
    assert attributes == {
        name: {key: id(value) for key, value in vars(one).items()} for name, one in model.named_modules()
    }
    assert all(torch.equal(tensors[name], value) for name, value in snapshot(model).items())


@pytest.mark.parametrize("modalities", [1, 2, 6, 12])
def test_any_number_of_modalities(modalities: int) -> None:
    full = (1 << modalities) - 1
    table = table_of([1, full >> 1 or 1], modalities, experts=16)
    model = random_model(table, experts=16)
    output = run(model, random_cohort([full, 1, full, 1 << modalities - 1], modalities), table, seed=1)
    assert output.logits_BY.shape == (4, 2)
    found = gradients(model, objective(output))
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(gradient.any() for name, gradient in found.items() if name.startswith("encoders"))


@STAGE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("teaching", [True, False])
def test_nobody_passes_forward_and_backward(specialize: bool, dtype: torch.dtype, teaching: bool) -> None:
    model = random_model(TABLE, dtype=dtype, layers=2, encoder_hidden=4)
    cohort = random_cohort([], MODALITIES, dtype=dtype)
    teaches_B = torch.zeros(0, dtype=torch.bool) if teaching else None
    output = run(model, cohort, TABLE, specialize, seed=1, teaches_B=teaches_B)
    assert output.logits_BY.shape == (0, 2)
    found = gradients(model, output.logits_BY.sum() + output.losses.balance + output.losses.specialization)
    assert not any(gradient.any() for gradient in found.values())


def generalists_only(model: FlexMoe, cohort: Cohort, teaches_B: Tensor, seed: int | None) -> dict[str, Tensor]:
    return gradients(model, objective(run(model, cohort, TABLE, False, seed, teaches_B)))


@pytest.mark.parametrize("specialization", ["pinned", "learned"])
def test_generalizing_teaches_experts_and_router_by_full_patients_alone(specialization: str) -> None:
    model = random_model(TABLE, layers=3, specialization=specialization)
    cohort = random_cohort(MASKS, MODALITIES)
    full_B = cohort.observed_BM.all(dim=1)
    found = generalists_only(model, cohort, full_B, None)
    moved = replace(
        cohort, inputs={k: torch.where(full_B[:, None], x, torch.randn_like(x)) for k, x in cohort.inputs.items()}
    )
    others = generalists_only(model, moved, full_B, None)
    output = run(model, cohort.select(full_B.nonzero().squeeze(1)), TABLE, False)
    weight_B = torch.arange(1.0, len(cohort) + 1)[full_B].double()
    task = (output.logits_BY.square().sum(dim=1) * weight_B).sum()
    alone = gradients(model, task + output.losses.balance)
    taught = [name for name in found if ".mixture." in name and not name.endswith("router.gate")]
    assert len(taught) == 12
    for name in taught:
        if not name.endswith("router.noise"):
            assert found[name].any(), name
        torch.testing.assert_close(found[name], others[name], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found[name], alone[name], rtol=1e-9, atol=1e-10)
    for name in found.keys() - set(taught):
        if ".mixture." not in name:
            assert not torch.allclose(found[name], alone[name]), name


def test_where_nobody_teaches_all_but_experts_and_router_learn() -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    found = generalists_only(model, cohort, torch.zeros(len(cohort), dtype=torch.bool), 3)
    silent = {name for name, gradient in found.items() if not gradient.any()}
    assert silent == {name for name in found if ".mixture." in name}


@STAGE
def test_teaching_changes_no_output(specialize: bool) -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    teaches_B = torch.arange(len(cohort)) % 2 == 0
    free, held = run(model, cohort, TABLE, specialize), run(model, cohort, TABLE, specialize, teaches_B=teaches_B)
    torch.testing.assert_close(free.logits_BY, held.logits_BY, rtol=1e-12, atol=1e-12)


def test_specializing_sends_each_incomplete_patient_to_its_expert() -> None:
    table = table_of(MASKS, MODALITIES, experts=6)
    model = random_model(table, experts=6, layers=3)
    cohort = random_cohort(MASKS, MODALITIES)
    expert_of = dict(zip(table.masks, table.experts, strict=True))
    for seed in (None, 1, 2):
        for use in run(model, cohort, table, seed=seed).use:
            for b, mask in enumerate(MASKS):
                if mask != table.full_mask:
                    assert use.gates_BE[b, expert_of[mask]] >= 0.5
                    assert use.routed_BE[b, expert_of[mask]] == 0.5


def test_full_patients_are_routed_alike_in_both_stages() -> None:
    model, cohort = random_model(TABLE), random_cohort(MASKS, MODALITIES)
    full_B = cohort.observed_BM.all(dim=1)
    free, special = run(model, cohort, TABLE, specialize=False), run(model, cohort, TABLE)
    assert torch.equal(free.logits_BY[full_B], special.logits_BY[full_B])
    assert not torch.isclose(free.logits_BY[~full_B], special.logits_BY[~full_B]).all(dim=1).any()


def test_losses_of_all_sparse_layers_add_up() -> None:
    cohort = random_cohort(MASKS, MODALITIES)
    model = random_model(TABLE, layers=3, specialization="learned")
    singles: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(
            lambda module, inputs, result: singles.append(result[1].balance) if result[1] else None
        )
    output = run(model, cohort, TABLE)
    assert len(singles) == len(output.use) == len(model.sparse_layers) == 2
    torch.testing.assert_close(output.losses.balance, singles[0] + singles[1])
    assert output.losses.specialization > 0


def test_zero_fill_bank_ignores_the_combination() -> None:
    model, cohort = random_model(TABLE, bank="zero"), random_cohort(MASKS, MODALITIES)
    tokens = model.tokens(cohort, TABLE.place(cohort.masks_B), None).unflatten(1, (MODALITIES, -1))
    position = model.position.unflatten(0, (MODALITIES, -1))
    for b, mask in enumerate(MASKS):
        for m in range(MODALITIES):
            if not mask >> m & 1:
                assert torch.equal(tokens[b, m], model.imputed + position[m])


def build(seed: int, names: Sequence[str] = ("a", "b"), **options: object) -> FlexMoe:
    inputs = [ModalityInput(name, "tabular", (FEATURES,)) for name in names]
    return build_model(names, inputs, 2, table_of([1], len(names)), tiny(**options), seed)


def test_the_same_seed_builds_the_same_model_whatever_the_global_generator_says() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = build(3, layers=2, encoder_hidden=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = build(3, layers=2, encoder_hidden=4), build(4, layers=2, encoder_hidden=4)
    assert all(torch.equal(value, snapshot(second)[name]) for name, value in snapshot(first).items())
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_modality_may_have_the_name_of_an_attribute_of_torch() -> None:
    names = ("type", "values", "training", "forward")
    model = build(0, names)
    cohort = Cohort(
        {name: torch.ones(2, FEATURES) for name in names},
        torch.ones(2, 4, dtype=torch.bool),
        torch.zeros(2, dtype=torch.int64),
    )
    assert run(model, cohort, table_of([1], 4)).logits_BY.shape == (2, 2)


def test_no_layer_mixes_patients_or_keeps_state() -> None:
    model = random_model(TABLE, layers=2)
    assert not list(model.buffers())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_loading_copies_in_place() -> None:
    model, other = random_model(TABLE, seed=1), random_model(TABLE, seed=2)
    kept = {name: id(parameter) for name, parameter in model.named_parameters()}
    load_parameters(model, {"head.bias": other.head.bias, "bank.default": other.bank.get_parameter("default")})
    assert torch.equal(model.head.bias, other.head.bias)
    assert not torch.equal(model.head.weight, other.head.weight)
    assert kept == {name: id(parameter) for name, parameter in model.named_parameters()}


def test_a_small_output_scale_starts_as_a_model_of_the_encoders_alone() -> None:
    model, cohort = build(0, names=("m0", "m1"), output_scale=1e-6, layers=2), random_cohort([0b11, 0b01], 2)
    cohort = replace(cohort, inputs={name: x_BF.float() for name, x_BF in cohort.inputs.items()})
    table, seen = table_of([1], 2), list[Tensor]()
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits_BY = run(model, cohort, table).logits_BY
    tokens_BND = model.tokens(cohort, table.place(cohort.masks_B), None)
    pooled_BMD = tokens_BND.unflatten(1, (2, -1)).mean(dim=2)
    torch.testing.assert_close(seen[0], pooled_BMD.flatten(1), rtol=1e-4, atol=1e-4)
    assert logits_BY.abs().max() < 1e-4
    large = build(0, names=("m0", "m1"), output_scale=1.0, layers=2)
    torch.testing.assert_close(large.head.weight * 1e-6, model.head.weight)
    torch.testing.assert_close(next(large.encoders.parameters()), next(model.encoders.parameters()))


@pytest.mark.parametrize("final_norm", [True, False])
def test_the_final_norm_scales_what_the_head_sees(final_norm: bool) -> None:
    model = build(0, names=("m0", "m1"), final_norm=final_norm, tokens=1)
    cohort, seen = random_cohort([0b11] * 3, 2), list[Tensor]()
    cohort = replace(cohort, inputs={name: 9 * x_BF.float() for name, x_BF in cohort.inputs.items()})
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run(model, cohort, table_of([1], 2))
    deviation_BM = seen[0].unflatten(1, (2, -1)).std(dim=2, correction=0)
    assert torch.allclose(deviation_BM, torch.ones(3, 2), atol=1e-3) == final_norm
