"""What a hospital sends under patient-level privacy says nothing of its patients but through noised gradients.

The noise is known and the patients' gradients are zero here: then two hospitals with entirely different patients and
equal declarations must send the same bytes, in every answer, and fail in the same requests.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Context, Message, RecordDict

from client import app as client_app
from client.ledger_file import LedgerFile
from client.masking import Membership
from client.site import Site
from flexmoe_core.audit import AuditLog
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.messages import FinishRequest, HandshakeRequest, Terms, TrainRequest, encode
from flexmoe_core.privacy import released_scores
from flexmoe_core.privacy.engine import PatientEngine
from flexmoe_core.privacy.released_scores import count_scores
from flexmoe_core.privacy.settings import PatientPrivacy, PrivacySettings
from flexmoe_core.study import load_study
from server.federation import initial_model
from simulations.datasets.synthetic import prepare_synthetic
from tests.client.test_app import asked
from tests.flexmoe_core.privacy.sources import KnownSource
from tests.simulations.federations import tiny_settings

RUN = "fedcba9876543210" * 2
ROUNDS, SITE = 3, "site-1"
DECLARED = {"patients": 60, "full_modality": True}


def hospital(folder: Path, patients: int, missing: float, seed: int) -> Path:
    """A generated hospital with the declarations of all others."""
    prepare_synthetic(
        folder, sites=1, modalities=3, patients_per_site=patients, classes=2, missing=missing, seed=seed
    )
    site = next(folder.glob("*/site.toml")).parent
    manifest = tomllib.loads((site / "site.toml").read_text()) | {"public": DECLARED}
    (site / "site.toml").write_text(tomli_w.dumps(manifest))
    return site


def requests(study_file: Path, release_noise: float | None) -> Iterator[tuple[str, bytes]]:
    """A whole run's questions, a repeated one and some that must fail."""
    study, method = load_study(study_file), tiny_settings(*PRIVATE).method
    privacy = PrivacySettings(patient=PatientPrivacy(epsilon=9.0))
    terms = Terms(run=RUN, seed=0, study=study, method=method, min_cell=1, rounds=ROUNDS, privacy=privacy)
    table = CombinationTable.build(len(study.modalities), method.model.experts, {}, 1, [study.full_mask])
    state = {name: value.detach().numpy() for name, value in initial_model(terms, table).named_parameters()}
    noise = {SITE: 40.0}
    yield "query.handshake", encode(HandshakeRequest(terms=terms))
    for number in range(1, ROUNDS + 1):
        request = encode(TrainRequest(terms=terms, table=table, round=number, noise_multipliers=noise), state)
        yield "train", request
        yield "train", request
    yield "train", encode(TrainRequest(terms=terms, table=table, round=1), {"unknown": np.zeros(1)})
    yield "train", b"no message"
    yield (
        "evaluate",
        encode(FinishRequest(terms=terms, table=table, round=ROUNDS, release_noise=release_noise), state),
    )


PRIVATE = ("method.losses.balance=0", "method.site.intercept=0", "method.site.regression=[]")


def traffic(site: Path, state: Path, release_noise: float | None) -> list[bytes | str]:
    """Everything that leaves: payloads with what stands beside them, and the words of failures."""
    key = site.parent.parent / "identity"
    if not key.exists():
        made = Ed25519PrivateKey.generate()
        key.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        key.chmod(0o600)
    node: dict[str, Any] = {"site": str(site), "state": str(state), "device": "cpu", "ledger-create": True}
    node["identity"] = str(key)
    context = Context(run_id=1, node_id=1000, node_config=node, state=RecordDict(), run_config={})
    sent: list[bytes | str] = []
    for question, payload in requests(site.parent / "study.toml", release_noise):
        try:
            sent.append(_bytes_of(client_app.app(asked(payload, question), context)))
        except client_app.SiteFailure as failure:
            sent.append(str(failure))
    return sent


def _bytes_of(message: Message) -> bytes:
    payload = message.content.array_records["payload"]["bytes"].numpy().tobytes()
    beside = sorted(message.content.config_records["beside"].items())
    return payload + repr(beside).encode()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known noise, gradients and counts of zero, and a clock and error ids that stand still."""

    def standing_still() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def no_gradient(self: PatientEngine, *_: object) -> torch.Tensor:
        return self.flat({})

    def no_counts(probabilities_BY: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
        return np.zeros_like(count_scores(probabilities_BY, labels_B))

    monkeypatch.setattr(Site.__init__, "__defaults__", (Membership(), {}, False, KnownSource()))
    monkeypatch.setattr(PatientEngine, "weighted_sum", no_gradient)
    monkeypatch.setattr(released_scores, "count_scores", no_counts)
    monkeypatch.setattr(AuditLog.__init__, "__defaults__", (standing_still, True))
    monkeypatch.setattr(LedgerFile.__init__, "__defaults__", (standing_still,))
    monkeypatch.setattr(client_app.secrets, "token_hex", lambda size: "0" * 2 * size)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("release_noise", [None, 4.0])
def test_hospitals_of_different_patients_and_equal_declarations_send_the_same_bytes(
    tmp_path: Path, release_noise: float | None
) -> None:
    many = hospital(tmp_path / "many", patients=90, missing=0.1, seed=1)
    few = hospital(tmp_path / "few", patients=25, missing=0.5, seed=2)
    first, second = (traffic(site, site.parent / "state", release_noise) for site in (many, few))
    assert len(first) == 1 + 2 * ROUNDS + 2 + 1
    assert sum(isinstance(one, str) for one in first) == 2
    assert first == second


@pytest.mark.usefixtures("known")
def test_gradients_do_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = hospital(tmp_path / "site", patients=40, missing=0.1, seed=1)
    silent = traffic(site, tmp_path / "silent", None)

    def large_gradient(self: PatientEngine, *_: object) -> torch.Tensor:
        return self.flat({}) + 1e6

    monkeypatch.setattr(PatientEngine, "weighted_sum", large_gradient)
    assert traffic(site, tmp_path / "loud", None) != silent


def test_with_randomness_that_is_secret_no_two_answers_are_the_same(tmp_path: Path) -> None:
    site = hospital(tmp_path / "site", patients=40, missing=0.1, seed=1)
    first, second = (traffic(site, tmp_path / state, 4.0) for state in ("first", "second"))
    rounds = slice(1, 1 + 2 * ROUNDS)
    assert not set(first[rounds]) & set(second[rounds])
