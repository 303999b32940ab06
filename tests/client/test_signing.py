"""What the ClientApp signs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, RecordDict, UserConfigValue

from client.app import app
from client.keys import ENROLLMENT, IDENTITY_KEY, make_keys
from flexmoe_core.attachments import RECORD, Attachments
from flexmoe_core.messages import HandshakeRequest, Terms, encode
from flexmoe_core.signatures import Statement, digest_of
from tests.client.conftest import SiteFolder
from tests.client.coordinator import METHOD, RUN
from tests.client.test_app import asked


def answered(request: bytes, site: SiteFolder, state: Path, **more: UserConfigValue) -> tuple[bytes, Attachments]:
    node: dict[str, UserConfigValue] = {"site": str(site.path), "state": str(state), "device": "cpu", **more}
    context = Context(run_id=1, node_id=1000, node_config=node, state=RecordDict(), run_config={})
    content = app(asked(request), context).content
    payload = content.array_records["payload"]["bytes"].numpy().tobytes()
    return payload, Attachments.from_values(content.config_records[RECORD])


def test_an_answer_is_signed_with_the_key_of_its_node(site: SiteFolder, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", "cleveland")
    line = json.loads((tmp_path / "keys" / ENROLLMENT).read_text())["identity_key"]
    request = encode(
        HandshakeRequest(terms=Terms(run=RUN, seed=0, study=site.study(), method=METHOD, min_cell=1, rounds=4))
    )
    payload, beside = answered(request, site, tmp_path / "state", identity=str(tmp_path / "keys" / IDENTITY_KEY))
    assert beside.audit_head is not None
    said = Statement("cleveland", "handshake", digest_of(request), digest_of(payload), beside.record)
    assert said.is_signed(beside.signature, line)
    for field in ("site", "question", "request", "reply", "record"):
        assert not replace(said, **{field: "other"}).is_signed(beside.signature, line), field


def test_without_a_key_nothing_is_signed_and_the_answer_is_the_same(site: SiteFolder, tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", "cleveland")
    request = encode(
        HandshakeRequest(terms=Terms(run=RUN, seed=0, study=site.study(), method=METHOD, min_cell=1, rounds=4))
    )
    plain, beside = answered(request, site, tmp_path / "plain")
    signed, _ = answered(request, site, tmp_path / "signed", identity=str(tmp_path / "keys" / IDENTITY_KEY))
    assert beside.signature == b""
    assert plain == signed
