from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from client.site_data import read_site
from flexmoe_core.cohort import Cohort
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.model import ModalityInput, build_model
from flexmoe_core.rehearsal import hide_modalities
from flexmoe_core.settings import MethodSettings
from flexmoe_core.update import Update, from_fixed_point, to_fixed_point
from server.settings import settings_with
from simulations.audits.coordinator_view import listen, summed_view
from simulations.audits.presence import (
    PublicModel,
    counts_from_supports,
    movement_of_rows,
    showings,
    zero_rows,
)
from simulations.audits.roc import roc_of
from simulations.audits.shadows import ReleasedModel
from simulations.runs import site_folders
from tests.simulations.federations import SITES, tiny_settings, tiny_study

MASKS = (0b111, 0b011, 0b101, 0b110, 0b001)
HIDING_NOTHING = ("method.losses.rehearsal=0", "method.training.modality_dropout=0")


def public(*changes: str, bank: str = "table") -> PublicModel:
    settings = settings_with(["method.model.width=8", f"method.model.bank={bank}", *changes]).method
    table = CombinationTable.build(3, 8, {"a": dict.fromkeys(MASKS, 9)}, min_full=1)
    names = ("a", "b", "c")
    model = build_model(
        names, [ModalityInput(name, "embedding", (2,)) for name in names], 2, table, settings.model, 0
    )
    return PublicModel(model, table, settings)


def supports(known: PublicModel, counts: Mapping[int, float]) -> Update:
    """What the patients of these combinations add to the supports where none of them hides anything."""
    support = {
        "position": np.array([sum(counts.values())]),
        "imputed": np.array([sum(n for mask, n in counts.items() if mask != 0b111)]),
        "bank.default": np.array([sum(n for mask, n in counts.items() if not mask >> m & 1) for m in range(3)]),
        "bank.residual": np.zeros(known.model.bank.slots),
    }
    for m, name in enumerate(("a", "b", "c")):
        seen = np.array([sum(n for mask, n in counts.items() if mask >> m & 1)])
        support[f"encoders.{name}-encoder.projection.weight"] = seen
    for mask, n in counts.items():
        masks_B = torch.tensor([mask])
        observed_BM = (masks_B[:, None] >> torch.arange(3) & 1).bool()
        support["bank.residual"] += (
            n * known.model.bank.users(known.table.place(masks_B).slots_BM, observed_BM).numpy()
        )
    return Update({}, {name: value.astype(np.float64) for name, value in support.items()})


@pytest.mark.parametrize("bank", ["table", "compositional"])
def test_supports_give_away_how_many_patients_a_combination_has(bank: str) -> None:
    known = public(*HIDING_NOTHING, bank=bank)
    counts = {0b111: 20.0, 0b011: 7.0, 0b110: 1.0}
    found = counts_from_supports(known, supports(known, counts))
    np.testing.assert_allclose(found, [counts.get(mask, 0.0) for mask in known.table.masks], atol=1e-6)


def test_what_patients_hide_has_the_chances_of_hiding() -> None:
    mask, chance, patients = 0b1011, 0.3, 40_000
    observed_BM = torch.tensor([[True, True, False, True]]).expand(patients, 4)
    cohort = Cohort({}, observed_BM, torch.zeros(patients, dtype=torch.int64))
    shown_B = hide_modalities(cohort, chance, torch.Generator().manual_seed(0)).masks_B
    expected = showings(mask, chance)
    assert sum(expected.values()) == pytest.approx(1.0)
    for seen, share in expected.items():
        assert float((shown_B == seen).double().mean()) == pytest.approx(share, abs=0.01)
    assert showings(mask, 0.0) == {mask: 1.0}


def test_zero_rows_name_the_combinations_that_are_absent() -> None:
    known = public()
    residual = np.zeros((known.model.bank.slots, 1, 8), np.float32)
    present = {0b011, 0b110}
    for row, (owner, _) in enumerate(known.table.slots):
        residual[row] = owner in present
    found = zero_rows(known, Update({"bank.residual": residual}, {}))
    assert set(found.absent) == set(MASKS) - present - {0b111}
    assert 0 < found.zero < found.rows
    moved = dict(
        zip(known.table.masks, movement_of_rows(known, Update({"bank.residual": residual}, {})), strict=True)
    )
    assert np.isnan(moved[0b111])
    assert moved[0b011] == moved[0b110] > 1.0, "in units of all rows"
    assert moved[0b101] == moved[0b001] == 0.0


def test_noise_on_every_row_and_declared_supports_leave_nothing_to_guess() -> None:
    """As patient-level privacy sends it: the same supports from everybody, and no row without noise."""
    known, generator = public(), np.random.default_rng(0)
    scores, present = [], []
    for _ in range(60):
        update = Update(
            {"bank.residual": generator.normal(0, 1, (known.model.bank.slots, 1, 8)).astype(np.float32)},
            supports(known, dict.fromkeys(MASKS, 50.0)).support,
        )
        assert zero_rows(known, update).absent == ()
        scores.append(np.stack([counts_from_supports(known, update), movement_of_rows(known, update)])[:, 1:])
        present.append(generator.random(len(MASKS) - 1) < 0.5)
    for attack in range(2):
        curve = roc_of(np.concatenate([one[attack] for one in scores]), np.concatenate(present))
        assert curve.auc == pytest.approx(0.5, abs=0.1)


def test_the_coordinator_hears_every_site_and_the_sum_is_the_exact_one(tmp_path: Path) -> None:
    settings = tiny_settings(*HIDING_NOTHING, "federation.rounds=2")
    store, rounds = listen(tiny_study(tmp_path / "study"), tmp_path / "run", settings)
    assert {number: sorted(updates) for number, updates in rounds.items()} == {1: list(SITES), 2: list(SITES)}
    released = ReleasedModel.of_run(store)
    known = PublicModel(released.model, released.table, settings.method)
    view = summed_view(rounds[2], known.specs)
    assert view["site-1"] is view["site-3"]
    for name, total in view["site-1"].weighted.items():
        codes = sum(to_fixed_point(one.weighted[name]) for one in rounds[2].values() if name in one.weighted)
        np.testing.assert_allclose(total, from_fixed_point(codes), rtol=1e-5, atol=1e-6)
    for site, folder in site_folders(tmp_path / "study").items():
        masks = read_site(folder, store.study, ("train",)).cohorts["train"].masks_B.numpy()
        found = counts_from_supports(known, rounds[2][site])
        np.testing.assert_allclose(found, [(masks == mask).sum() for mask in known.table.masks], atol=1e-3)


def test_settings_of_the_method_reach_the_attack() -> None:
    assert isinstance(public().settings, MethodSettings)
    assert public("method.losses.rehearsal=0").per_patient_SU.sum() < public().per_patient_SU.sum()
