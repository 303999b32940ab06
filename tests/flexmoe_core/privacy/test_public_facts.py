"""Weights of a private update come from declarations, never from patients."""

from __future__ import annotations

import numpy as np
import pytest

from flexmoe_core.curriculum import RoundPlan, Stage
from flexmoe_core.groups import Group, group_of, specs_of, support_of
from flexmoe_core.model import FlexMoe, ModalityInput, build_model
from flexmoe_core.privacy.public_facts import DeclaredFacts
from flexmoe_core.settings import ModelSettings
from tests.flexmoe_core.cohorts import TINY, table_of

NAMES = ("a", "b", "c")
GENERALIZE, SPECIALIZE = RoundPlan(Stage.GENERALIZE, ordered=False), RoundPlan(Stage.SPECIALIZE, ordered=True)
TABLE = table_of([0b111, 0b011, 0b001], 3)
PARTIAL = DeclaredFacts(patients=300, modalities=("a", "b"), full_modality=False)
COMPLETE = DeclaredFacts(patients=40, modalities=NAMES, full_modality=True)


def model(**changes: object) -> FlexMoe:
    inputs = [ModalityInput(name, "tabular", (2,)) for name in NAMES]
    return build_model(NAMES, inputs, 2, TABLE, ModelSettings.model_validate(TINY | changes), seed=0)


def weights(of: FlexMoe, facts: DeclaredFacts, plan: RoundPlan) -> dict[str, np.ndarray]:
    support = facts.support(of, TABLE, plan)
    return {name: support_of(name, support, of) for name, _ in of.named_parameters()}


@pytest.mark.parametrize("bank", ["table", "compositional", "zero"])
@pytest.mark.parametrize("router", ["shared", "modality"])
def test_every_weight_is_the_declared_size_or_zero_and_has_the_rows_of_its_tensor(bank: str, router: str) -> None:
    one = model(bank=bank, router=router)
    rows = {spec.name: spec.rows for spec in specs_of(dict(one.named_parameters()))}
    for plan in (GENERALIZE, SPECIALIZE):
        for name, weight_R in weights(one, PARTIAL, plan).items():
            assert set(weight_R.tolist()) <= {0.0, 300.0}, name
            assert weight_R.shape == (rows[name],), name


def test_what_the_site_does_not_have_it_neither_trains_nor_weighs() -> None:
    one = model()
    found = weights(one, PARTIAL, SPECIALIZE)
    lacking = {name for name in found if name.startswith("encoders.c-encoder")}
    assert lacking
    assert lacking == PARTIAL.frozen(one, SPECIALIZE)
    assert all(not found[name].any() for name in lacking)


def test_bank_rows_of_combinations_that_the_site_cannot_have_weigh_nothing() -> None:
    one = model()
    possible = [mask & ~0b011 == 0 for mask, _ in TABLE.slots]
    assert weights(one, PARTIAL, SPECIALIZE)["bank.residual"].tolist() == [300.0 * one for one in possible]
    assert weights(one, COMPLETE, SPECIALIZE)["bank.residual"].tolist() == [40.0] * len(TABLE.slots)


def test_experts_and_router_are_taught_by_who_declared_complete_patients_until_all_teach() -> None:
    one = model()
    mixed = {name for name, _ in one.named_parameters() if group_of(name) in (Group.EXPERTS, Group.ROUTER)}
    assert mixed <= PARTIAL.frozen(one, GENERALIZE)
    assert not mixed & PARTIAL.frozen(one, SPECIALIZE)
    assert not mixed & COMPLETE.frozen(one, GENERALIZE)
    assert all(not weights(one, PARTIAL, GENERALIZE)[name].any() for name in mixed)
    gate = "layers.0.mixture.router.gate"
    assert all(weights(one, COMPLETE, GENERALIZE)[name].all() for name in mixed - {gate})
    assert all(weights(one, COMPLETE, SPECIALIZE)[name].all() for name in mixed)
