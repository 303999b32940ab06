from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.bundle import read_bundle
from client.site_data import read_site
from flexmoe_core.combinations import NO_SLOT, CombinationTable
from flexmoe_core.errors import InputError
from flexmoe_core.study import load_study
from server.run_store import RunStore
from server.settings import settings_with
from simulations.datasets.synthetic import prepare_synthetic
from simulations.datasets.uci_heart import prepare_uci_heart
from simulations.hidden_modalities import (
    HiddenPredictions,
    hide,
    mean_auroc,
    pooled_auroc,
    predict_hidden,
    untrained_tokens,
)
from simulations.hidden_study import NEVER_TRAINED, HiddenStudy, compare_banks, study_hidden, with_bank
from simulations.runs import simulate, site_bundle, site_folders
from tests.simulations.federations import tiny_settings

MODALITIES, COMBINATIONS = 6, 63


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "sites"
    prepare_synthetic(folder, sites=2, modalities=MODALITIES, patients_per_site=80, classes=2, missing=0.2, seed=2)
    return folder


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return simulate(study, tmp_path_factory.mktemp("run") / "run", tiny_settings("federation.rounds=3"))


@pytest.fixture(scope="module")
def hidden(study: Path, finished: RunStore) -> HiddenPredictions:
    return predict_hidden(study, finished)


def test_every_combination_is_predicted_for_all_who_can_show_it(study: Path, hidden: HiddenPredictions) -> None:
    loaded = load_study(study / "study.toml")
    masks = np.concatenate(
        [read_site(one, loaded, ("train", "test")).cohorts["test"].masks_B for one in site_folders(study).values()]
    )
    can_show_BC = (masks[:, None] & np.array(hidden.masks)) == np.array(hidden.masks)
    assert len(hidden.masks) == COMBINATIONS
    assert can_show_BC.any(axis=0).all()
    assert hidden.pairs == can_show_BC.sum()
    assert (np.isfinite(hidden.probabilities_BCY).all(axis=2) == can_show_BC).all()
    assert np.nansum(hidden.probabilities_BCY, axis=2)[can_show_BC] == pytest.approx(1)
    assert set(hidden.never_trained) | set(hidden.table.masks) == set(hidden.masks)


def test_nothing_hidden_is_what_the_run_predicted(hidden: HiddenPredictions, finished: RunStore) -> None:
    full = hidden.of([hidden.table.full_mask])[:, 0]
    shown_B = ~np.isnan(full[:, 0])
    correct = ((full[shown_B, 1] >= 0.5) == hidden.labels_B[shown_B]).mean()
    name = "+".join(finished.study.modality_names)
    assert correct == pytest.approx(finished.metrics()["test"]["combinations"][name]["accuracy"])


def test_every_bank_row_that_a_combination_uses_has_patients_behind_it(finished: RunStore) -> None:
    _, facts = finished.results()
    announced = {int(mask) for reply in facts["participants"].values() for mask in reply["announced"]}
    table = CombinationTable.from_json(facts["table"])
    slots_CM = table.place(torch.arange(1, COMBINATIONS + 1)).slots_BM
    used = {table.slots[slot] for slot in slots_CM.flatten().tolist() if slot != NO_SLOT}
    assert used
    assert {mask for mask, _ in used} <= announced


def test_every_token_has_received_a_gradient(study: Path, finished: RunStore) -> None:
    for site in site_folders(study):
        assert untrained_tokens(read_bundle(site_bundle(finished, site))) == []


@pytest.mark.parametrize("bank", ["table", "compositional"])
def test_tokens_that_nobody_needed_in_training_are_found_and_hiding_leaves_none(tmp_path: Path, bank: str) -> None:
    folder = tmp_path / "sites"
    prepare_synthetic(folder, sites=2, modalities=2, patients_per_site=60, classes=2, missing=0.4, seed=2)
    for site in site_folders(folder).values():  # whoever lacks the first modality goes
        loaded = read_site(site, load_study(folder / "study.toml"), ("train", "validation", "test"))
        lacking = {
            patient
            for split, cohort in loaded.cohorts.items()
            for patient, has in zip(loaded.ids[split], cohort.observed_BM[:, 0].tolist(), strict=True)
            if not has
        }
        for file in site.glob("*.csv"):
            lines = file.read_text().splitlines()
            file.write_text("\n".join(line for line in lines if line.split(",")[0] not in lacking) + "\n")
    for rehearsal, dropout, untrained in ((0, 0, [(0b10, 0)]), (1, 0, []), (0, 0.5, [])):
        hiding = (f"method.losses.rehearsal={rehearsal}", f"method.training.modality_dropout={dropout}")
        changes = ("federation.rounds=2", f"method.model.bank={bank}", *hiding)
        store = simulate(folder, tmp_path / f"run-{rehearsal}-{dropout}", tiny_settings(*changes))
        assert untrained_tokens(read_bundle(site_bundle(store, "site-1"))) == untrained


def test_hidden_values_cannot_be_seen(study: Path) -> None:
    loaded = load_study(study / "study.toml")
    cohort = read_site(study / "site-1", loaded, ("train", "test")).cohorts["test"]
    shown = hide(cohort, loaded.modality_names, 0b000101)
    assert shown.masks_B.tolist() == [mask & 0b000101 for mask in cohort.masks_B.tolist()]
    for place, name in enumerate(loaded.modality_names):
        if name in ("modality_1", "modality_3"):
            assert torch.equal(shown.inputs[name], cohort.inputs[name])
        else:
            assert place not in (0, 2)
            assert not shown.inputs[name].any()


def test_pooling_punishes_a_combination_that_is_believed_sicker_and_the_mean_does_not() -> None:
    labels_B = np.array([0, 1, 0, 1])
    positive_BC = np.array([[0.1, 0.6], [0.2, 0.7], [0.1, 0.6], [0.2, np.nan]])
    probabilities_BCY = np.stack([1 - positive_BC, positive_BC], axis=2)
    assert mean_auroc(probabilities_BCY, labels_B) == 1
    assert pooled_auroc(probabilities_BCY, labels_B) == pytest.approx(8 / 12)


def test_a_bank_is_no_better_than_itself(study: Path, finished: RunStore) -> None:
    found = compare_banks(study, finished, finished, resamples=10)
    assert {(one.difference, one.low, one.high) for one in found.measures} == {(0.0, 0.0, 0.0)}
    assert {one.count for one in found.measures if one.combinations == NEVER_TRAINED} == {
        COMBINATIONS - len(predict_hidden(study, finished).table.masks)
    }
    assert HiddenStudy.model_validate_json(found.model_dump_json()) == found


def test_zero_fill_changes_the_bank_alone() -> None:
    settings = tiny_settings()
    zero = with_bank(settings, "zero")
    assert zero.method.model.bank == "zero"
    assert with_bank(zero, "table") == settings


def test_a_study_of_many_modalities_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sites"
    prepare_synthetic(folder, sites=1, modalities=11, patients_per_site=60, classes=2, missing=0.1, seed=2)
    store = simulate(folder, tmp_path / "run", tiny_settings("federation.rounds=1"))
    with pytest.raises(InputError, match="more than 10 modalities"):
        predict_hidden(folder, store)


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> HiddenStudy:
    folder = tmp_path_factory.mktemp("heart")
    prepare_uci_heart(folder / "sites", "flamby", 0)
    return study_hidden(folder / "sites", folder, settings_with([], seed=0))


@pytest.mark.slow
def test_within_combinations_never_trained_the_bank_is_not_below_zero_fill(heart: HiddenStudy) -> None:
    (found,) = [one for one in heart.measures if one.combinations == NEVER_TRAINED and "mean" in one.measure]
    assert found.bank > 0.75
    assert found.high >= 0


@pytest.mark.slow
def test_over_combinations_never_trained_the_bank_is_not_below_zero_fill(heart: HiddenStudy) -> None:
    (found,) = [one for one in heart.measures if one.combinations == NEVER_TRAINED and "pooled" in one.measure]
    assert heart.untrained == {}
    assert found.high >= 0
