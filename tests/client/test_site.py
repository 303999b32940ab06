"""A hospital that answers: bytes in, bytes out. The folder is that of ``conftest``: three training patients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.bundle import Bundle, bundle_digest, read_bundle
from client.prediction import Predictor, predict_cohort
from client.site import Site
from flexmoe_core.checkpoint import read_checkpoint
from flexmoe_core.errors import CheckpointError, MessageError
from flexmoe_core.evaluation import Predictions, predict, score_cells
from flexmoe_core.groups import Group
from flexmoe_core.messages import FinishReply, HandshakeReply, TrainReply, decode
from flexmoe_core.naming import under_prefix
from flexmoe_core.settings import SiteSettings
from flexmoe_core.site_fit import fit_effect
from tests.client.conftest import SiteFolder
from tests.client.coordinator import METHOD, RUN, Arrays, Coordinator, coordinate, make_cpu_site

LABS = """[[modality]]
name = "labs"
file = "labs.csv"
missing = ["", "?"]
[modality.columns]
chol = "serum_chol"
"""


@pytest.fixture
def hospital(site: SiteFolder, tmp_path: Path) -> Site:
    return make_cpu_site(site.path, tmp_path / "state")


@pytest.fixture
def coordinator(site: SiteFolder, hospital: Site) -> Coordinator:
    return coordinate(site.study(), hospital)


def announced(site: SiteFolder, hospital: Site, min_cell: int) -> HandshakeReply:
    request = coordinate(site.study(), hospital, min_cell).handshake()
    return decode(hospital.handshake(request), HandshakeReply)[0]


def trained(hospital: Site, request: bytes) -> Arrays:
    return decode(hospital.train(request), TrainReply)[1]


def local(hospital: Site, round_number: int) -> Arrays:
    return read_checkpoint(hospital.state / RUN / f"local-{round_number:05d}")[0]


def assert_equal(first: Arrays, second: Arrays) -> None:
    assert {name: value.tobytes() for name, value in first.items()} == {
        name: value.tobytes() for name, value in second.items()
    }


def test_the_handshake_announces_what_at_least_min_cell_patients_have(site: SiteFolder, hospital: Site) -> None:
    everything = announced(site, hospital, min_cell=1)
    assert everything.site == "cleveland"
    assert everything.modalities == ("history", "labs", "scan")
    assert (everything.declared_patients, everything.declared_full_modality) == (6, True)
    assert everything.patients == {"train": 3, "validation": 1}
    assert everything.announced == {0b001: 1, 0b101: 1, 0b111: 1}
    assert everything.observed == {"history": 3, "labs": 1, "scan": 2}

    some = announced(site, hospital, min_cell=2)
    assert (some.patients, some.announced, some.observed) == ({"train": 3}, {}, {"history": 3, "scan": 2})

    little = announced(site, hospital, min_cell=4)
    assert (little.patients, little.announced, little.observed) == ({}, {}, {})


def test_a_round_answers_an_update_and_the_scores_of_what_came_in(hospital: Site, coordinator: Coordinator) -> None:
    reply, arrays = decode(hospital.train(coordinator.train()), TrainReply)
    assert (reply.site, reply.round, reply.attempt) == ("cleveland", 1, 1)
    assert np.isfinite(reply.loss)
    assert under_prefix("weighted", arrays).keys() == under_prefix("support", arrays).keys()
    assert under_prefix("weighted", arrays).keys() <= coordinator.state().keys()
    np.testing.assert_array_equal(arrays["support/head.bias"], [3.0])
    assert arrays["weighted/head.bias"].any()
    assert under_prefix("validation", arrays)["5/confusion_YY"].sum() == 1


def test_the_same_request_gets_the_same_bytes_and_another_attempt_the_same_update(
    hospital: Site, coordinator: Coordinator
) -> None:
    first = hospital.train(coordinator.train())
    assert hospital.train(coordinator.train()) == first
    again = hospital.train(coordinator.train(attempt=2))
    assert again != first
    assert_equal(decode(again, TrainReply)[1], decode(first, TrainReply)[1])


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, None])
def test_a_broken_stored_answer_is_made_again(hospital: Site, coordinator: Coordinator, damage: bytes | None) -> None:
    first = trained(hospital, coordinator.train())
    file = hospital.state / RUN / "answer.bin"
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    assert_equal(trained(hospital, coordinator.train()), first)


def test_a_local_encoder_trains_and_never_travels(hospital: Site, coordinator: Coordinator) -> None:
    answer = hospital.train(coordinator.train())
    assert b"scan-encoder" not in answer
    assert not [name for name in coordinator.state() if "scan-encoder" in name]
    first, names = local(hospital, 1), local(hospital, 1).keys()
    assert names
    assert all(name.startswith("encoders.scan-encoder.") for name in names)
    hospital.train(coordinator.train(2))
    assert any(not np.array_equal(first[name], local(hospital, 2)[name]) for name in names)


def test_local_parameters_roll_back_with_the_coordinator(hospital: Site, coordinator: Coordinator) -> None:
    trained(hospital, coordinator.train(1))
    second = trained(hospital, coordinator.train(2))
    after_second = local(hospital, 2)
    trained(hospital, coordinator.train(3))
    assert_equal(trained(hospital, coordinator.train(2)), second)
    assert_equal(local(hospital, 2), after_second)
    assert not (hospital.state / RUN / "local-00003.json").exists()


def test_local_groups_stay_too(site: SiteFolder, hospital: Site) -> None:
    coordinator = coordinate(site.study(), hospital, local_groups=(Group.HEAD, Group.EXPERTS))
    answer = hospital.train(coordinator.train())
    assert b"head." not in answer
    assert b".experts." not in answer
    assert {"head.bias", "layers.0.mixture.experts.w1"} <= local(hospital, 1).keys()


def test_local_parameters_survive_to_the_bundle(hospital: Site, coordinator: Coordinator) -> None:
    hospital.train(coordinator.train(1))
    hospital.train(coordinator.train(2))
    hospital.finish(coordinator.finish(2))
    weights = dict(read_bundle(hospital.state / RUN / "bundle").model.named_parameters())
    for name, value in local(hospital, 2).items():
        np.testing.assert_array_equal(weights[name].detach().numpy(), value)


def test_columns_that_change_during_a_run_are_found_out(
    site: SiteFolder, hospital: Site, coordinator: Coordinator
) -> None:
    hospital.train(coordinator.train(1))
    site.edit("site.toml", 'categories = ["A", "B"]', 'categories = ["A", "B", "C"]')
    with pytest.raises(CheckpointError, match="have columns"):
        hospital.train(coordinator.train(2))


def test_a_modality_that_the_site_lacks_is_not_in_its_update(site: SiteFolder, hospital: Site) -> None:
    site.edit("site.toml", LABS, "")
    site.edit("site.toml", "full_modality = true", "full_modality = false")
    coordinator = coordinate(site.study(), hospital)
    assert decode(hospital.handshake(coordinator.handshake()), HandshakeReply)[0].modalities == ("history", "scan")
    arrays = trained(hospital, coordinator.train())
    assert any(name.startswith("encoders.labs-encoder.") for name in coordinator.state())
    assert not [name for name in arrays if "labs-encoder" in name]
    assert [name for name in arrays if "history-encoder" in name]
    hospital.finish(coordinator.finish(1))


def test_a_local_modality_that_the_site_lacks_has_no_encoder(site: SiteFolder, hospital: Site) -> None:
    text = (site / "site.toml").read_text()
    site.write("site.toml", text[: text.index('[[modality]]\nname = "scan"')].replace("= true", "= false"))
    coordinator = coordinate(site.study(), hospital)
    trained(hospital, coordinator.train())
    assert local(hospital, 1) == {}


def test_without_validation_patients_there_are_no_scores(site: SiteFolder, hospital: Site) -> None:
    site.edit("patients.csv", "p3,absent,validation", "p3,absent,train")
    coordinator = coordinate(site.study(), hospital)
    assert not under_prefix("validation", trained(hospital, coordinator.train()))
    _, arrays = decode(hospital.finish(coordinator.finish(1)), FinishReply)
    assert not under_prefix("validation", arrays)
    assert under_prefix("test", arrays)


def test_fewer_than_min_cell_validation_patients_have_no_scores(site: SiteFolder, hospital: Site) -> None:
    coordinator = coordinate(site.study(), hospital, min_cell=2)
    assert not under_prefix("validation", trained(hospital, coordinator.train()))
    _, arrays = decode(hospital.finish(coordinator.finish(1)), FinishReply)
    assert {name.split("/")[0] for name in under_prefix("test", arrays)} == {"other"}, "p4 and p6 differ"


def test_parameters_of_another_model_are_refused(hospital: Site, coordinator: Coordinator) -> None:
    state = coordinator.state()
    wider = state | {"head.bias": np.zeros(3, np.float32)}
    fewer = {name: value for name, value in state.items() if name != "head.bias"}
    more = state | {"encoders.scan-encoder.project.weight": np.zeros((2, 2), np.float32)}
    for wrong in (wider, fewer, more, {}):
        with pytest.raises(MessageError, match="not those of this study's model"):
            hospital.train(coordinator.train(state=wrong))
        with pytest.raises(MessageError, match="not those of this study's model"):
            hospital.finish(coordinator.finish(1, state=wrong))
    assert list((hospital.state / RUN).iterdir()) == []


def test_a_request_of_another_kind_is_refused(hospital: Site, coordinator: Coordinator) -> None:
    for request in (coordinator.handshake(), coordinator.finish(1), b"", coordinator.train()[:-1]):
        with pytest.raises(MessageError):
            hospital.train(request)


def test_the_finish_scores_test_patients_once_and_names_its_bundle(
    site: SiteFolder, hospital: Site, coordinator: Coordinator
) -> None:
    hospital.train(coordinator.train(1))
    answer = hospital.finish(coordinator.finish(1))
    reply, arrays = decode(answer, FinishReply)
    assert reply.bundle == bundle_digest(hospital.state / RUN / "bundle")
    tested = under_prefix("test", arrays)
    assert sum(value.sum() for name, value in tested.items() if name.endswith("confusion_YY")) == 2
    site.edit("patients.csv", "p4,present,test", "p4,absent,test")
    assert hospital.finish(coordinator.finish(1)) == answer


def test_labels_of_test_patients_are_not_read_before_the_finish(
    site: SiteFolder, hospital: Site, coordinator: Coordinator
) -> None:
    site.edit("patients.csv", "p4,present,test", "p4,unreadable,test")
    hospital.train(coordinator.train(1))
    with pytest.raises(Exception, match="outside the classes"):
        hospital.finish(coordinator.finish(1))


def finished(hospital: Site, coordinator: Coordinator, rounds: int = 2) -> tuple[bytes, Bundle]:
    """What the site answers after some rounds, and the bundle that it keeps."""
    for round_number in range(1, rounds + 1):
        hospital.train(coordinator.train(round_number))
    return hospital.finish(coordinator.finish(rounds)), read_bundle(hospital.state / RUN / "bundle")


def test_the_bundle_has_the_effect_of_the_final_model_on_training_and_validation_patients(
    site: SiteFolder, hospital: Site, coordinator: Coordinator
) -> None:
    bundle = finished(hospital, coordinator)[1]
    cohorts = site.read().cohorts
    training, validation = cohorts["train"], cohorts["validation"]
    during = Predictor.during_training(bundle.model, bundle.facts.table, True, training, METHOD.site)
    share = during.regression_share(training, validation, METHOD.site)
    patients = training + validation
    shared_BY = predict(bundle.model, patients, bundle.facts.table, specialize=True).probabilities_BY
    expected = fit_effect(bundle.model.modalities, shared_BY, patients, share, METHOD.site).to_arrays()
    found = bundle.effect.to_arrays()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    assert 0 < bundle.effect.kept < 1


def test_the_final_validation_score_knows_nothing_of_validation_labels(
    site: SiteFolder, coordinator: Coordinator, tmp_path: Path
) -> None:
    """Another label of the validation patient moves the test patients' probabilities, not its own."""
    told = []
    for label in ("absent", "present"):
        site.edit("patients.csv", "p3,absent,validation", f"p3,{label},validation")
        own = make_cpu_site(site.path, tmp_path / label)
        arrays = decode(finished(own, coordinator)[0], FinishReply)[1]
        told.append({split: probability_bins(arrays, split) for split in ("validation", "test")})
    np.testing.assert_array_equal(told[0]["validation"], told[1]["validation"])
    assert not np.array_equal(told[0]["test"], told[1]["test"])


def probability_bins(arrays: Arrays, split: str) -> np.ndarray:
    """(Y, G): patients by the bin of each class's probability, whatever they have."""
    histograms = [value for name, value in under_prefix(split, arrays).items() if name.endswith("histogram_Y2G")]
    bins_YG: np.ndarray = np.sum(histograms, axis=(0, 2))
    return bins_YG


@pytest.mark.parametrize("rounds", [1, 2])
def test_scores_are_those_of_the_bundle_with_its_effect(
    site: SiteFolder, hospital: Site, coordinator: Coordinator, rounds: int
) -> None:
    site.edit("labs.csv", "x,350,p1", "x,350,p1\nx,250,p6")  # without any modality p6 would get the prior
    answer, bundle = finished(hospital, coordinator, rounds)
    cohort = site.read().cohorts["test"]
    predictions = Predictions(predict_cohort(bundle, cohort), np.zeros((len(cohort), METHOD.model.experts)))
    tested = under_prefix("test", decode(answer, FinishReply)[1])
    for mask, cell in score_cells(predictions, cohort, min_cell=1).items():
        np.testing.assert_allclose(tested[f"{mask}/losses_fixed_2"], cell.scores.losses_fixed_2, rtol=1e-6)


def test_rounds_score_validation_patients_as_the_finish_does(hospital: Site, coordinator: Coordinator) -> None:
    """With the intercept of training patients alone, so that the curve ends where the finish says."""
    answer, _ = finished(hospital, coordinator, rounds=2)
    following = trained(hospital, coordinator.train(3))
    assert_equal(under_prefix("validation", decode(answer, FinishReply)[1]), under_prefix("validation", following))


def test_the_effect_never_leaves_the_site(site: SiteFolder, tmp_path: Path) -> None:
    names, updates = [], []
    for spread in (0.0, 1.0):
        hospital = make_cpu_site(site.path, tmp_path / f"state-{spread}")
        method = METHOD.model_copy(
            update={"site": SiteSettings(intercept=spread, regression=(spread,) if spread else ())}
        )
        coordinator = coordinate(site.study(), hospital, method=method)
        answers = [hospital.train(coordinator.train(round_number)) for round_number in (1, 2)]
        answers.append(hospital.finish(coordinator.finish(2)))
        told = [*(decode(answer, TrainReply)[1] for answer in answers[:2]), decode(answers[2], FinishReply)[1]]
        names.append([set(arrays) for arrays in told])
        updates.append({name: value for name, value in told[1].items() if not name.startswith("validation")})
        effect = read_bundle(hospital.state / RUN / "bundle").effect.to_arrays()
        del effect["kept"]  # a round number like one half may stand anywhere
        values = np.concatenate([array.ravel() for array in effect.values()])
        assert values.any() == (spread > 0)
        for value in values[values != 0]:
            for stated in (np.float64(value).tobytes(), np.float32(value).tobytes(), repr(float(value)).encode()):
                assert not any(stated in answer for answer in answers)
    assert names[0] == names[1]
    assert_equal(*updates)


def test_a_site_of_one_class_has_a_finite_effect(site: SiteFolder, hospital: Site) -> None:
    site.edit("patients.csv", "p1,absent,train", "p1,present,train")
    answer, bundle = finished(hospital, coordinate(site.study(), hospital))
    assert bundle.facts.prior == (0, 1)
    assert all(np.isfinite(value).all() for value in bundle.effect.to_arrays().values())
    assert all(np.isfinite(value).all() for value in decode(answer, FinishReply)[1].values())
