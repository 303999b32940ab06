"""The ClientApp: which folders a node serves, and how little of an error leaves it."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict, UserConfigValue
from flwr.supercore.task_identity import TaskIdentity

from client.app import SiteFailure, app
from client.site import Site
from flexmoe_core.attachments import RECORD, Attachments
from flexmoe_core.audit_line import EMPTY
from flexmoe_core.audit_verify import record_path, verify
from flexmoe_core.errors import InputError
from flexmoe_core.messages import HandshakeReply, HandshakeRequest, Terms, TrainReply, decode, encode
from flexmoe_core.naming import under_prefix
from flexmoe_core.study import Study
from simulations.engines.inprocess import InProcessGrid, Node
from tests.client.conftest import SiteFolder, make_site
from tests.client.coordinator import METHOD, RUN, coordinate, make_cpu_site

GENERIC = re.compile(r"the site could not answer; its log has the details under ([0-9a-f]{8})")
Config = dict[str, UserConfigValue]


def asked(payload: bytes, question: str = "query.handshake") -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    array = Array(np.frombuffer(payload, dtype=np.uint8))
    return Message(RecordDict({"payload": ArrayRecord({"bytes": array})}), 1000, question)


def answered(message: Message, node: Config, run: Config | None = None) -> bytes:
    context = Context(run_id=1, node_id=1000, node_config=node, state=RecordDict(), run_config=run or {})
    reply = app(message, context)
    return reply.content.array_records["payload"]["bytes"].numpy().tobytes()


def shaking(study: Study) -> Message:
    terms = Terms(run=RUN, seed=0, study=study, method=METHOD, min_cell=1, rounds=4)
    return asked(encode(HandshakeRequest(terms=terms)))


def name_of(answer: bytes) -> str:
    return decode(answer, HandshakeReply)[0].site


def node_config(site: SiteFolder, state: Path) -> Config:
    return {"site": str(site.path), "state": str(state), "device": "cpu"}


def failure_id(message: Message, node: Config, run: Config | None = None) -> str:
    """The id of an error that says nothing else."""
    with pytest.raises(SiteFailure) as caught:
        answered(message, node, run)
    told = GENERIC.fullmatch(str(caught.value))
    assert told, "more than the id leaves the site"
    assert caught.value.__suppress_context__
    return told[1]


def test_a_node_serves_the_folders_of_its_configuration(site: SiteFolder, tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    assert name_of(answered(shaking(site.study()), node_config(site, state))) == "cleveland"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_the_device_is_optional(site: SiteFolder, tmp_path: Path) -> None:
    for device in ({}, {"device": "auto"}, {"device": "cpu"}):
        node: Config = {"site": str(site.path), "state": str(tmp_path / "state"), **device}
        assert name_of(answered(shaking(site.study()), node)) == "cleveland"


def test_a_numbered_node_serves_the_site_folder_of_that_place(tmp_path: Path) -> None:
    study_folder = tmp_path / "hospitals"
    study_folder.mkdir()
    for name in ("zurich", "basel"):
        make_site(study_folder / name).edit("site.toml", '"cleveland"', f'"{name}"')
    (study_folder / "notes").mkdir()
    study = make_site(tmp_path / "any").study()
    run: Config = {"study-folder": str(study_folder), "run-folder": str(tmp_path / "run")}
    names = [name_of(answered(shaking(study), {"partition-id": place, "num-partitions": 2}, run)) for place in (0, 1)]
    assert names == ["basel", "zurich"]
    assert {path.name for path in (tmp_path / "run" / "sites").iterdir()} == {"basel", "zurich"}


def test_each_message_has_its_answer(site: SiteFolder, tmp_path: Path) -> None:
    state = tmp_path / "state"
    coordinator = coordinate(site.study(), make_cpu_site(site.path, state))
    node = node_config(site, state)
    assert decode(answered(asked(coordinator.train(), "train"), node), TrainReply)[0].round == 1
    assert b"FinishReply" in answered(asked(coordinator.finish(1), "evaluate"), node)
    assert not (state / "site.log").exists()


def break_table(site: SiteFolder) -> None:
    site.edit("history.csv", "p1,60,M", "p1,SECRET-VALUE,M")


def remove_table(site: SiteFolder) -> None:
    (site / "history.csv").unlink()


def replace_table_by_folder(site: SiteFolder) -> None:
    remove_table(site)
    (site / "history.csv").mkdir()


def remove_manifest(site: SiteFolder) -> None:
    (site / "site.toml").unlink()


@pytest.mark.parametrize("damage", [break_table, remove_table, replace_table_by_folder, remove_manifest])
def test_of_an_unreadable_site_folder_nothing_but_an_id_leaves(
    tmp_path: Path, damage: Callable[[SiteFolder], None]
) -> None:
    site = make_site(tmp_path / "SECRET-FOLDER")
    study = site.study()
    damage(site)
    error_id = failure_id(shaking(study), node_config(site, tmp_path / "state"))
    log = tmp_path / "state" / "site.log"
    text = log.read_text()
    assert error_id in text
    assert "SECRET-FOLDER" in text
    assert InputError.__name__ in text
    assert "SECRET-VALUE" not in text
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_coordinator_sees_the_id_alone(site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def revealing(self: Site, request: bytes) -> bytes:
        raise KeyError("SECRET-VALUE of patient SECRET-ID in SECRET-FILE")

    monkeypatch.setattr(Site, "train", revealing)
    with InProcessGrid(app, [Node("north", node_config(site, tmp_path / "state"))], {}) as grid:
        (reply,) = grid.send_and_receive([asked(b"", "train")])
    assert reply.has_error()
    assert re.fullmatch(r"<class 'client\.app\.SiteFailure'>:<'" + GENERIC.pattern + r"'>", reply.error.reason or "")
    log = (tmp_path / "state" / "site.log").read_text()
    assert "SECRET-VALUE of patient SECRET-ID" in log
    assert GENERIC.findall(reply.error.reason or "")[0] in log


def test_every_error_has_its_own_id_in_one_log(site: SiteFolder, tmp_path: Path) -> None:
    node = node_config(site, tmp_path / "state")
    ids = [failure_id(asked(b"no request"), node) for _ in range(3)]
    text = (tmp_path / "state" / "site.log").read_text()
    assert len(set(ids)) == 3
    assert [text.count(error_id) for error_id in ids] == [1, 1, 1]


def test_a_message_without_a_request_is_a_failure(site: SiteFolder, tmp_path: Path) -> None:
    message = asked(b"")
    message.content = RecordDict()
    failure_id(message, node_config(site, tmp_path / "state"))


@pytest.mark.parametrize(
    ("node", "run"),
    [
        ({}, {}),
        ({"site": "SECRET-FOLDER"}, {}),
        ({"partition-id": 5}, {"study-folder": "/SECRET-FOLDER", "run-folder": "/SECRET-FOLDER"}),
        ({"site": "/SECRET-FOLDER", "state": "/dev/null/SECRET-FOLDER"}, {}),
    ],
)
def test_a_node_without_a_folder_for_its_log_tells_its_own_terminal(
    site: SiteFolder, node: Config, run: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    error_id = failure_id(shaking(site.study()), node, run)
    assert error_id in capsys.readouterr().err


def test_an_unknown_device_is_in_the_log(site: SiteFolder, tmp_path: Path) -> None:
    node = {**node_config(site, tmp_path / "state"), "device": "abacus"}
    error_id = failure_id(shaking(site.study()), node)
    text = (tmp_path / "state" / "site.log").read_text()
    assert error_id in text
    assert "abacus" in text


def record_of(state: Path) -> list[dict[str, Any]]:
    verdict = verify(record_path(state))
    assert verdict.unbroken
    assert verdict.notes == ()
    return [{"event": entry.event, **entry.facts} for entry in verdict.entries]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_answer_is_recorded_by_name_and_size(
    site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, bundle = tmp_path / "state", "c" * 64
    monkeypatch.setenv("FLEXMOE_BUNDLE", bundle)
    coordinator = coordinate(site.study(), make_cpu_site(site.path, tmp_path / "other"))
    node = node_config(site, state)
    shake, train, finish = coordinator.handshake(), coordinator.train(), coordinator.finish(1)
    replies = [
        answered(asked(request, question), node)
        for request, question in ((shake, "query.handshake"), (train, "train"), (finish, "evaluate"))
    ]
    lines = record_of(state)
    shaken, trained, finished = (line for line in lines if line["event"] == "answered")
    for line, request, reply in zip((shaken, trained, finished), (shake, train, finish), replies, strict=True):
        assert line["request"] == {"bytes": len(request), "sha256": sha256(request)}
        assert (line["reply"]["bytes"], line["reply"]["sha256"]) == (len(reply), sha256(reply))
        assert (line["run"], line["study"], line["site"], line["bundle"]) == (RUN, "heart", "cleveland", bundle)
        assert (line["privacy"], line["repeated"]) == ({"mechanism": "none"}, False)
    assert [(line["question"], line["round"], line["attempt"]) for line in (shaken, trained, finished)] == [
        ("handshake", None, None),
        ("train", 1, 1),
        ("finish", 1, None),
    ]
    counts = decode(replies[0], HandshakeReply)[0].model_dump(mode="json")
    assert shaken["reply"]["counts"] == {
        "announced": {str(mask): n for mask, n in counts["announced"].items()},
        **{name: counts[name] for name in ("declared_patients", "observed", "patients")},
    }
    assert trained["reply"]["facts"] == sorted(TrainReply.model_fields)
    assert trained["reply"]["counts"] == {}
    sent = decode(replies[1], TrainReply)[1]
    assert set(trained["reply"]["arrays"]) == {"weighted", "support", "validation"}
    for prefix, described in trained["reply"]["arrays"].items():
        arrays = under_prefix(prefix, sent)
        names = sorted(arrays)
        assert described["count"] == len(arrays)
        assert described["bytes"] == sum(array.nbytes for array in arrays.values())
        assert described["names"] == sha256("".join(f"{name}\n" for name in names).encode())
        (listed,) = (line for line in lines if line["event"] == "names" and line["sha256"] == described["names"])
        assert (listed["names"], listed["run"]) == (names, RUN)
    assert set(finished["reply"]["arrays"]) == {"validation", "test"}


def test_no_value_of_a_reply_but_its_announced_counts_is_in_the_record(site: SiteFolder, tmp_path: Path) -> None:
    state = tmp_path / "state"
    coordinator = coordinate(site.study(), make_cpu_site(site.path, tmp_path / "other"))
    reply = decode(answered(asked(coordinator.train(), "train"), node_config(site, state)), TrainReply)[0]
    text = (state / "audit.jsonl").read_text()
    assert str(reply.loss) not in text
    assert not any(patient in text for patient in ("p1", "p2", "p3", "female"))
    assert stat.S_IMODE((state / "audit.jsonl").stat().st_mode) == 0o600


def test_lists_of_names_are_written_once_in_a_run(site: SiteFolder, tmp_path: Path) -> None:
    state = tmp_path / "state"
    coordinator = coordinate(site.study(), make_cpu_site(site.path, tmp_path / "other"))
    for number in (1, 2, 3):
        answered(asked(coordinator.train(number), "train"), node_config(site, state))
    lists = [line["sha256"] for line in record_of(state) if line["event"] == "names"]
    assert len(lists) == len(set(lists)) > 0
    assert [line["round"] for line in record_of(state) if line["event"] == "answered"] == [1, 2, 3]


def test_an_answer_that_is_given_again_is_recorded_as_repeated(site: SiteFolder, tmp_path: Path) -> None:
    state = tmp_path / "state"
    coordinator = coordinate(site.study(), make_cpu_site(site.path, tmp_path / "other"))
    node = node_config(site, state)
    train = coordinator.train()
    assert answered(asked(train, "train"), node) == answered(asked(train, "train"), node)
    answered(asked(coordinator.train(attempt=2), "train"), node)
    repeated = [line["repeated"] for line in record_of(state) if line["event"] == "answered"]
    assert repeated == [False, True, False]


def test_the_head_before_the_line_travels_beside_the_payload(site: SiteFolder, tmp_path: Path) -> None:
    node = node_config(site, tmp_path / "state")
    heads = []
    for _ in range(2):
        context = Context(run_id=1, node_id=1000, node_config=node, state=RecordDict(), run_config={})
        content = app(shaking(site.study()), context).content
        heads.append(Attachments.from_values(content.config_records[RECORD]).audit_head)
    assert heads == [EMPTY, verify(record_path(tmp_path / "state")).entries[0].head]


def test_a_failure_is_recorded_by_its_id_alone(site: SiteFolder, tmp_path: Path) -> None:
    state = tmp_path / "state"
    request = shaking(site.study())
    break_table(site)
    ids = [failure_id(message, node_config(site, state)) for message in (request, asked(b"SECRET", "train"))]
    empty = asked(b"")
    empty.content = RecordDict()
    ids.append(failure_id(empty, node_config(site, state)))
    first, second, third = record_of(state)
    assert [line["error_id"] for line in (first, second, third)] == ids
    assert {line["event"] for line in (first, second, third)} == {"failed"}
    assert (first["question"], first["run"], first["study"]) == ("handshake", RUN, "heart")
    assert (second["question"], second["run"], second["request"]) == (
        "train",
        None,
        {"bytes": 6, "sha256": sha256(b"SECRET")},
    )
    assert third["request"] is None
    assert "SECRET" not in (state / "audit.jsonl").read_text()


@pytest.mark.parametrize("text", ["../../x", "SECRET VALUE", 7, None, ["SECRET VALUE"]])
def test_of_a_request_nothing_but_well_formed_names_is_recorded(
    site: SiteFolder, tmp_path: Path, text: object
) -> None:
    facts = json.dumps({"TrainRequest": {"terms": {"run": text, "study": {"name": text}}, "round": text}})
    body = safetensors.numpy.save({}, metadata={"facts": facts})
    failure_id(asked(hashlib.sha256(body).digest() + body, "train"), node_config(site, tmp_path / "state"))
    (line,) = record_of(tmp_path / "state")
    assert (line["run"], line["study"], line["round"]) == (None, None, None)
    assert "SECRET" not in (tmp_path / "state" / "audit.jsonl").read_text()


def test_what_cannot_be_recorded_does_not_leave(
    site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    node = node_config(site, state)
    answered(shaking(site.study()), node)

    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flexmoe_core.audit.os.write", full)
    error_id = failure_id(shaking(site.study()), node)
    monkeypatch.undo()
    log = (state / "site.log").read_text()
    assert log.count(error_id) == 2, "neither the answer nor the failure could be recorded"
    assert "No space left on device" in log
    (state / "audit.jsonl").rename(state / "moved")
    (state / "audit.jsonl").mkdir()
    failure_id(shaking(site.study()), node)


def test_sites_of_a_simulation_do_not_wait_for_the_disk(
    site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[Path] = []
    monkeypatch.setattr("flexmoe_core.audit.write_atomic", lambda path, data: replaced.append(path))
    answered(shaking(site.study()), node_config(site, tmp_path / "simulated") | {"audit-fsync": False})
    assert replaced == []
    assert len(record_of(tmp_path / "simulated")) == 1
    answered(shaking(site.study()), node_config(site, tmp_path / "real"))
    assert replaced == [tmp_path / "real" / "audit.jsonl.head"]
