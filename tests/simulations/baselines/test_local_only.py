from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.site_data import read_site
from flexmoe_core.errors import InputError, RunFailed
from flexmoe_core.study import load_study
from server.settings import settings_with
from simulations.baselines import local_only as module
from simulations.baselines.local_network import NetworkJob, candidates, copy_with_splits, train_alone
from simulations.baselines.local_only import LocalOnly, local_only
from simulations.baselines.predictions import ALL_SPLITS, SitePredictions
from tests.simulations.baselines.patients import prepared
from tests.simulations.federations import tiny_settings


class Oracle:
    """A network that gives the true class this probability, and notes what it was asked."""

    def __init__(self, probability: float) -> None:
        self.probability, self.asked = probability, list[NetworkJob]()

    def __call__(self, job: NetworkJob) -> SitePredictions:
        self.asked.append(job)
        data = read_site(job.site, load_study(job.site.parent / "study.toml"), ALL_SPLITS)
        label_of = {
            patient: int(label)
            for split in ALL_SPLITS
            for patient, label in zip(data.ids[split], data.cohorts[split].labels_B, strict=True)
        }
        labels_B = np.array([label_of[patient] for patient in job.patients])
        right_BY = np.eye(2)[labels_B]
        return SitePredictions(
            job.patients, labels_B, self.probability * right_BY + (1 - self.probability) * (1 - right_BY)
        )


def chosen_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, network: Callable[[NetworkJob], SitePredictions]
) -> LocalOnly:
    monkeypatch.setattr(module, "train_alone", network)
    study, folders, sites = prepared(folder / "study")
    return local_only(study, folders, sites, tiny_settings())


def test_the_better_of_both_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    good = chosen_with(monkeypatch, tmp_path / "a", Oracle(0.99))
    bad = chosen_with(monkeypatch, tmp_path / "b", Oracle(0.01))
    assert set(good.chosen.values()) == {"network"}
    assert all((one.probabilities_BY.max(axis=1) == 0.99).all() for one in good.predictions.values())
    assert set(bad.chosen.values()) == {"logistic regression"}


def test_test_patients_decide_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = Oracle(0.99)
    chosen_with(monkeypatch, tmp_path, network)
    _, _, sites = prepared(tmp_path / "again")
    tested = {patient for data in sites.values() for patient in data.ids["test"]}
    held_out = [job for job in network.asked if not tested & set(job.patients)]
    last = [job for job in network.asked if tested >= set(job.patients)]
    assert len(held_out) == 2 * len(candidates(tiny_settings())) * module.FOLDS
    assert len(last) == 2
    assert all(set(job.split_of.values()) == {"train"} for job in last)
    assert not any(tested & set(job.split_of) for job in held_out)


def test_nobody_learns_from_the_patients_that_are_held_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Held-out patients that a site took for validation patients would teach it."""
    network = Oracle(0.99)
    chosen_with(monkeypatch, tmp_path, network)
    for job in network.asked:
        learned = {patient for patient, split in job.split_of.items() if split != "test"}
        assert learned
        assert not learned & set(job.patients)


def test_a_network_that_diverges_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def diverge(job: NetworkJob) -> SitePredictions:
        raise RunFailed("no round was aggregated")

    assert set(chosen_with(monkeypatch, tmp_path, diverge).chosen.values()) == {"logistic regression"}


def test_a_hospital_that_knows_one_class_predicts_its_prior(tmp_path: Path) -> None:
    study, folders, _ = prepared(tmp_path / "study")
    table = folders["site-1"] / "patients.csv"
    header, *rows = table.read_text().splitlines()
    kept = [row if row.endswith("test") else row.replace("class_0", "class_1") for row in rows]
    table.write_text("\n".join([header, *kept]) + "\n")
    one = {"site-1": folders["site-1"]}
    found = local_only(study, one, {"site-1": read_site(one["site-1"], study, ALL_SPLITS)}, tiny_settings())
    assert found.chosen == {"site-1": "prior: one class"}
    assert (found.predictions["site-1"].probabilities_BY == [0.0, 1.0]).all()


def test_a_federation_of_one_trains_and_predicts_the_asked_patients(tmp_path: Path) -> None:
    _, folders, sites = prepared(tmp_path / "study", patients_per_site=100)
    data = sites["site-1"]
    everyone = dict.fromkeys((*data.ids["train"], *data.ids["validation"]), "train")
    job = NetworkJob(folders["site-1"], everyone, candidates(tiny_settings())[0], data.ids["test"][1:])
    first, again = train_alone(job), train_alone(job)
    assert first.ids == data.ids["test"][1:]
    assert np.array_equal(first.probabilities_BY, again.probabilities_BY)


def test_candidates_are_shorter_and_shorter_federations_of_one() -> None:
    changes = ["federation.rounds=40", "federation.quorum=4", "federation.early_stop.patience=3"]
    found = candidates(settings_with([*changes, "method.curriculum.generalize_rounds=8"]))
    assert [one.federation.rounds for one in found] == [40, 20, 10, 5]
    assert [one.method.curriculum.generalize_rounds for one in found] == [8, 4, 2, 1]
    assert {(one.federation.quorum, one.federation.early_stop.patience) for one in found} == {(1, 0)}
    assert len(found) == len(module.PENALTIES)


def test_splits_are_changed_in_the_copy_alone(tmp_path: Path) -> None:
    study, folders, sites = prepared(tmp_path / "study")
    site, before = folders["site-1"], sites["site-1"]
    moved = before.ids["train"][:5]
    copy_with_splits(site, tmp_path / "copy" / "site-1", dict.fromkeys(moved, "validation"))
    after = read_site(tmp_path / "copy" / "site-1", study, ALL_SPLITS)
    assert set(after.ids["validation"]) == {*before.ids["validation"], *moved}
    assert after.ids["test"] == before.ids["test"]
    assert read_site(site, study, ALL_SPLITS).ids == before.ids


def test_a_patients_file_that_cannot_be_rewritten_is_named(tmp_path: Path) -> None:
    _, folders, _ = prepared(tmp_path / "study")
    manifest = folders["site-1"] / "site.toml"
    manifest.write_text(manifest.read_text().replace("patients.csv", "patients.parquet"))
    with pytest.raises(InputError, match=r"patients\.parquet.*not a CSV"):
        copy_with_splits(folders["site-1"], tmp_path / "copy", {})
