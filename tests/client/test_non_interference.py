"""What a hospital sends under patient-level privacy says nothing of its patients but through noised gradients.

The noise is known and the patients' gradients are zero here: then two hospitals with entirely different patients and
equal declarations must send the same bytes, in every answer, and fail in the same requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client import app as client_app
from client.site import Site
from flexmoe_core import audit
from flexmoe_core.combinations import CombinationTable
from flexmoe_core.messages import FinishRequest, HandshakeRequest, Terms, TrainRequest, encode
from flexmoe_core.privacy.settings import PatientPrivacy, PrivacySettings
from flexmoe_core.study import load_study
from server.federation import initial_model
from simulations.datasets.synthetic import prepare_synthetic
from tests.client.test_app import asked
from tests.flexmoe_core.privacy.sources import KnownSource
from tests.simulations.federations import tiny_settings

RUN = "fedcba9876543210" * 2
ROUNDS = 3
DECLARED = "[public]\npatients = 60\nfull_modality = true\n"


def hospital(folder: Path, patients: int, missing: float, seed: int) -> Path:
    """A generated hospital with the declarations of all others."""
    prepare_synthetic(
        folder, sites=1, modalities=3, patients_per_site=patients, classes=2, missing=missing, seed=seed
    )
    site = folder / "site_1" if (folder / "site_1").is_dir() else next(folder.glob("*/site.toml")).parent
    manifest = (site / "site.toml").read_text()
    start = manifest.index("[public]")
    end = manifest.index("\n[", start) + 1
    (site / "site.toml").write_text(manifest[:start] + DECLARED + manifest[end:])
    return site


def requests(study_file: Path) -> Iterator[tuple[str, bytes]]:
    """A whole run's questions, a repeated one and some that must fail."""
    study, method = load_study(study_file), tiny_settings(*PRIVATE).method
    privacy = PrivacySettings(patient=PatientPrivacy(epsilon=3.0))
    terms = Terms(run=RUN, seed=0, study=study, method=method, min_cell=1, rounds=ROUNDS, privacy=privacy)
    table = CombinationTable.build(len(study.modalities), method.model.experts, {}, 1, [study.full_mask])
    state = {name: value.detach().numpy() for name, value in initial_model(terms, table).named_parameters()}
    yield "query.handshake", encode(HandshakeRequest(terms=terms))
    for number in range(1, ROUNDS + 1):
        request = encode(TrainRequest(terms=terms, table=table, round=number), state)
        yield "train", request
        yield "train", request
    yield "train", encode(TrainRequest(terms=terms, table=table, round=1), {"unknown": np.zeros(1)})
    yield "train", b"no message"
    yield "evaluate", encode(FinishRequest(terms=terms, table=table, round=ROUNDS), state)


PRIVATE = ("method.losses.balance=0", "method.site.intercept=0", "method.site.regression=[]")


def traffic(site: Path, state: Path) -> list[bytes | str]:
    """Everything that leaves: payloads with what stands beside them, and the words of failures."""
    node: dict[str, Any] = {"site": str(site), "state": str(state), "device": "cpu", "ledger-create": True}
    context = Context(run_id=1, node_id=1000, node_config=node, state=RecordDict(), run_config={})
    sent: list[bytes | str] = []
    for question, payload in requests(site.parent / "study.toml"):
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
    """Known noise, gradients of zero, and a clock and error ids that stand still."""
    from flexmoe_core.privacy import training

    monkeypatch.setattr(Site.__init__, "__defaults__", (KnownSource,))
    monkeypatch.setattr(training, "clipped_sum", _no_gradient(training.clipped_sum))
    monkeypatch.setattr(audit, "utc_now", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    monkeypatch.setattr(client_app.secrets, "token_hex", lambda size: "0" * 2 * size)


def _no_gradient(real: Any) -> Any:
    def zero(*arguments: Any, **options: Any) -> Any:
        return {name: torch.zeros_like(value) for name, value in real(*arguments, **options).items()}

    return zero
