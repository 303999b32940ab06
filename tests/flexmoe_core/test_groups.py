"""Which tensor belongs to whom, and whose patients stand behind it."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from flexmoe_core.groups import Group, Support, group_of, is_local, shared_parameters, specs_of, support_of
from flexmoe_core.model import FlexMoe
from tests.flexmoe_core.cohorts import TINY, random_model, table_of

TABLE = table_of([0b011, 0b101], 3)
SUPPORT = Support(
    patients=20.0,
    incomplete=12.0,
    specialized=11.0,
    modality_M=np.array([20.0, 14.0, 9.0]),
    lacking_M=np.array([0.0, 6.0, 11.0]),
    slots_S=np.array([5.0, 6.0]),
    routed_LRE=np.array([[[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0, 8.0]]]),
    offered_LE=np.array([[2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0]]),
)


@pytest.fixture(scope="module")
def model() -> FlexMoe:
    return random_model(TABLE, layers=3, encoder_hidden=4)


def test_every_parameter_has_its_group(model: FlexMoe) -> None:
    groups = {name: group_of(name) for name, _ in model.named_parameters()}
    modules = {
        Group.ENCODERS: model.encoders,
        Group.BANK: model.bank,
        Group.HEAD: model.head,
    }
    for group, module in modules.items():
        own = {id(parameter) for parameter in module.parameters()}
        assert {id(model.get_parameter(name)) for name, found in groups.items() if found is group} == own
    for layer in (0, 2):
        assert groups[f"layers.{layer}.mixture.experts.w1"] is Group.EXPERTS
        assert groups[f"layers.{layer}.mixture.router.weight"] is Group.ROUTER
    for name in (
        "position",
        "imputed",
        "layers.0.attention_norm.weight",
        "layers.0.attention.project_in.weight",
        "layers.1.dense.expand.bias",
    ):
        assert groups[name] is Group.TRUNK


def test_all_but_local_encoders_and_local_groups_travel(model: FlexMoe) -> None:
    everything = {name for name, _ in model.named_parameters()}
    assert set(shared_parameters(model, ())) == everything
    shared = shared_parameters(model, ["m1"], [Group.HEAD])
    kept = everything - set(shared)
    assert kept == {name for name in everything if name.startswith("head.")} | {
        name
        for name in everything
        if any(model.get_parameter(name) is p for p in list(model.encoders.children())[1].parameters())
    }
    assert all(is_local(name, ["m1"], [Group.HEAD]) == (name in kept) for name in everything)
    assert shared["position"] is model.position


@pytest.mark.parametrize("group", Group)
def test_any_group_may_stay(model: FlexMoe, group: Group) -> None:
    shared = shared_parameters(model, (), [group])
    assert {group_of(name) for name in shared} == set(Group) - {group}


def test_rows_of_bank_experts_and_router_are_supported_one_by_one(model: FlexMoe) -> None:
    specs = {spec.name: spec for spec in specs_of(shared_parameters(model, ()))}
    assert specs["bank.residual"].rows == len(TABLE.slots) == 2
    assert specs["bank.default"].rows == 3
    for name in ("experts.w1", "experts.b1", "experts.w2", "experts.b2", "router.weight", "router.noise"):
        assert specs[f"layers.2.mixture.{name}"].rows == TINY["experts"]
    assert all(specs[name].rows == 1 for name in specs if group_of(name) in (Group.ENCODERS, Group.TRUNK, Group.HEAD))
    assert specs["layers.0.mixture.router.gate"].rows == 1
    for name, spec in specs.items():
        assert spec.shape == tuple(model.get_parameter(name).shape)
        assert support_of(name, SUPPORT, model).shape == (spec.rows,)


def test_whose_patients_stand_behind_what(model: FlexMoe) -> None:
    for name, _ in model.named_parameters():
        w_R = support_of(name, SUPPORT, model).tolist()
        match group_of(name):
            case Group.ENCODERS:
                m = next(m for m, module in enumerate(model.encoders.children()) if _holds(module, model, name))
                assert w_R == [SUPPORT.modality_M[m]]
            case Group.BANK:
                assert w_R == (SUPPORT.lacking_M if name == "bank.default" else SUPPORT.slots_S).tolist()
            case Group.EXPERTS | Group.ROUTER if not name.endswith(".gate"):
                assert w_R == SUPPORT.experts_LE[int(name.split(".")[1]) // 2].tolist()
            case Group.ROUTER:
                assert w_R == [SUPPORT.specialized]
            case _:
                assert w_R == [SUPPORT.incomplete if name == "imputed" else SUPPORT.patients]


def test_each_modalitys_router_is_supported_by_its_own_tokens() -> None:
    model = random_model(TABLE, layers=3, router="modality")
    support = replace(SUPPORT, routed_LRE=np.arange(24.0).reshape(2, 3, 4))
    specs = {spec.name: spec for spec in specs_of(shared_parameters(model, ()))}
    for name in ("weight", "noise"):
        rows = f"layers.2.mixture.router.{name}"
        assert specs[rows].shape[0] == specs[rows].rows == 3 * TINY["experts"]
        assert support_of(rows, support, model).tolist() == list(range(12, 24))
    for name in ("w1", "b2"):
        assert support_of(f"layers.2.mixture.experts.{name}", support, model).tolist() == [16, 17, 18, 19]
    assert specs["layers.0.mixture.router.gate"].rows == 1
    assert support_of("layers.0.mixture.router.gate", support, model).tolist() == [SUPPORT.specialized]


def test_a_bias_is_supported_by_who_could_choose_freely() -> None:
    model = random_model(TABLE, layers=3, balancing="bias")
    specs = {spec.name: spec for spec in specs_of(shared_parameters(model, ()))}
    for place, layer in enumerate((0, 2)):
        name = f"layers.{layer}.mixture.router.bias"
        assert group_of(name) is Group.ROUTER
        assert (specs[name].shape, specs[name].rows) == ((4,), 4)
        assert support_of(name, SUPPORT, model).tolist() == SUPPORT.offered_LE[place].tolist()
    assert "layers.0.mixture.router.bias" not in shared_parameters(model, (), [Group.ROUTER])


def test_a_composed_bank_has_a_row_for_each_pair_of_modalities() -> None:
    model = random_model(TABLE, bank="compositional")
    specs = {spec.name: spec for spec in specs_of(shared_parameters(model, ()))}
    assert (specs["bank.default"].rows, specs["bank.residual"].rows) == (3, 9)
    support = replace(SUPPORT, slots_S=np.arange(9.0))
    assert support_of("bank.residual", support, model).tolist() == list(range(9))


def test_one_modality_has_a_bank_without_rows() -> None:
    model = random_model(table_of([1], 1))
    spec = next(spec for spec in specs_of(shared_parameters(model, ())) if spec.name == "bank.residual")
    assert (spec.rows, spec.row_shape) == (0, (0, 0))


def _holds(module: nn.Module, model: FlexMoe, name: str) -> bool:
    return any(model.get_parameter(name) is parameter for parameter in module.parameters())
