from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.bundle import read_bundle
from simulations.audits import shadows as module
from simulations.audits.data import halves, trained_on, with_declared_combinations
from simulations.audits.shadows import ReleasedModel, Shadow, ShadowResult, shadows_of, train_shadow, train_shadows
from simulations.benchmark_data import Synthetic
from simulations.results import RESULTS, read_lines
from simulations.runs import simulate, site_bundle
from tests.simulations.federations import tiny_settings, tiny_study

DATA = Synthetic(sites=2, modalities=3, patients_per_site=30, missing=0.3)


def test_members_are_half_of_every_site_and_others_in_every_shadow() -> None:
    patients = DATA.load(0).patients
    drawn = [halves(patients, 0, shadow) for shadow in range(3)]
    for is_member in drawn:
        for site in ("site-1", "site-2"):
            assert is_member[patients["site"].to_numpy() == site].sum() == 15
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[2], halves(patients, 0, 2))


def test_members_alone_are_trained_on() -> None:
    pooled = DATA.load(0)
    is_member = halves(pooled.patients, 0, 0)
    split = trained_on(pooled, is_member).patients["split"].to_numpy()
    np.testing.assert_array_equal(split == "train", is_member)
    assert set(split) == {"train", "test"}


def test_the_released_model_is_the_one_that_sites_end_with(tmp_path: Path) -> None:
    store = simulate(tiny_study(tmp_path / "study"), tmp_path / "run", tiny_settings())
    released, bundle = ReleasedModel.of_run(store), read_bundle(site_bundle(store, "site-1"))
    kept = dict(bundle.model.named_parameters())
    for name, value in released.model.named_parameters():
        assert torch.equal(value, kept[name]), name
    assert released.table == bundle.facts.table
    assert released.specialize


def test_a_shadow_says_something_of_everybody_and_remembers_members() -> None:
    settings = tiny_settings("federation.rounds=12", "method.model.dropout=0", "method.losses.rehearsal=0")
    shadow = Shadow(data=DATA, number=1, settings=settings)
    result = train_shadow(shadow)
    is_member = np.array(result.is_member)
    np.testing.assert_array_equal(is_member, halves(DATA.load(0).patients, 0, 1))
    logits = np.array(result.logits)
    assert len(logits) == 60
    assert np.isfinite(logits).all()
    assert logits[is_member].mean() > logits[~is_member].mean()


def test_shadows_that_are_there_are_not_trained_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained: list[int] = []

    def fake(shadow: Shadow) -> ShadowResult:
        trained.append(shadow.number)
        return ShadowResult(shadow=shadow, is_member=(True, False), logits=(0.5, float(shadow.number)))

    monkeypatch.setattr(module, "train_shadow", fake)
    settings = tiny_settings()
    first = list(train_shadows(tmp_path, shadows_of(DATA, settings, 3)))
    again = list(train_shadows(tmp_path, shadows_of(DATA, settings, 5)))
    other = list(train_shadows(tmp_path, shadows_of(DATA, tiny_settings("federation.rounds=3"), 1)))
    assert [new for _, new in first] == [True] * 3
    assert [new for _, new in again] == [False] * 3 + [True] * 2
    assert [new for _, new in other] == [True]
    assert trained == [0, 1, 2, 3, 4, 0]
    assert len(read_lines(tmp_path / RESULTS, ShadowResult)) == 6


def test_combinations_are_declared_for_all_protections_alike() -> None:
    pooled = with_declared_combinations(DATA.load(0))
    observed = pooled.observed()
    seen = {tuple(observed.columns[row]) for row in observed.to_numpy(dtype=bool)}
    assert set(pooled.study.combinations) == seen
    assert len(pooled.study.combinations) == len(seen) > 3
