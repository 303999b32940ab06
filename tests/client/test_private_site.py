"""A hospital under patient-level privacy: what it refuses before a patient is read, and what it never reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.site import Site
from flexmoe_core.errors import InputError, LedgerError, MessageError
from flexmoe_core.messages import FinishReply, HandshakeReply, TrainReply, decode
from flexmoe_core.privacy.settings import PatientPrivacy, PrivacySettings
from flexmoe_core.settings import MethodSettings
from tests.client.conftest import SiteFolder
from tests.client.coordinator import METHOD, Coordinator, coordinate

NOISE = {"cleveland": 5.0}
DECLARING = ('unit = "ml"\n', 'unit = "ml"\nrange = [0, 100]\n')


def private(method: MethodSettings) -> MethodSettings:
    losses = method.losses.model_copy(update={"balance": 0.0})
    site = method.site.model_copy(update={"intercept": 0.0, "regression": ()})
    return method.model_copy(update={"losses": losses, "site": site})


def coordinator_of(site: SiteFolder, there: Site, epsilon: float = 50.0) -> Coordinator:
    open_one = coordinate(site.study(), there, method=private(METHOD))
    privacy = PrivacySettings(patient=PatientPrivacy(epsilon=epsilon))
    return replace(open_one, terms=open_one.terms.model_copy(update={"privacy": privacy}))


@pytest.fixture
def hospital(site: SiteFolder, tmp_path: Path) -> Site:
    return Site(site.path, tmp_path / "state", torch.device("cpu"), creates_ledger=True)


def test_a_scale_that_would_be_fitted_to_patients_is_refused(site: SiteFolder, hospital: Site) -> None:
    coordinator = coordinator_of(site, hospital)
    with pytest.raises(InputError, match="fitted to patients"):
        hospital.train(coordinator.train(noise=NOISE))
    site.edit("site.toml", *DECLARING)
    reply, arrays = decode(hospital.train(coordinator.train(noise=NOISE)), TrainReply)
    assert (reply.loss, reply.seconds) == (None, None)
    assert {name.split("/")[0] for name in arrays} == {"weighted", "support"}


def test_a_handshake_reads_the_manifest_alone(site: SiteFolder, hospital: Site) -> None:
    coordinator = coordinator_of(site, hospital)
    for name in ("patients.csv", "history.csv", "labs.csv", "scan.parquet"):
        (site / name).unlink()
    reply, _ = decode(hospital.handshake(coordinator.handshake()), HandshakeReply)
    assert (reply.patients, reply.announced, reply.observed) == ({}, {}, {})
    assert reply.declared_patients == 6


def test_without_a_ledger_nothing_is_trained(site: SiteFolder, hospital: Site) -> None:
    site.edit("site.toml", *DECLARING)
    coordinator = coordinator_of(site, hospital)
    with pytest.raises(LedgerError):
        replace(hospital, creates_ledger=False).train(coordinator.train(noise=NOISE))


def test_a_request_without_noise_for_this_site_is_refused(site: SiteFolder, hospital: Site) -> None:
    site.edit("site.toml", *DECLARING)
    with pytest.raises(MessageError, match="names no noise"):
        hospital.train(coordinator_of(site, hospital).train())


def test_the_finish_tells_nothing_but_noised_counts(site: SiteFolder, hospital: Site) -> None:
    site.edit("site.toml", *DECLARING)
    coordinator = coordinator_of(site, hospital)
    reply, arrays = decode(hospital.finish(coordinator.finish(1, release_noise=3.0)), FinishReply)
    assert reply.bundle is None
    assert {name.rsplit("/", 1)[0] for name in arrays} == {"released/validation", "released/test"}
    assert (hospital.state / coordinator.terms.run / "bundle" / "model.json").is_file()
    _, nothing = decode(hospital.finish(coordinator.finish(1)), FinishReply)
    assert nothing == {}
