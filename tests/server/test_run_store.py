from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from flexmoe_core.enrollment import Member, Roster
from flexmoe_core.errors import CheckpointError, FlexMoeError, InputError
from server.run_store import RunStore
from server.settings import RunSettings
from tests.flexmoe_core.hospital_keys import enrollment_of
from tests.server.scripted import STUDY

SETTINGS = RunSettings(seed=5)
ARRAYS = {"x": np.arange(3, dtype=np.float32)}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run", STUDY, SETTINGS)


def row(number: int) -> dict[str, object]:
    return {"round": number, "seconds": 0.5}


def test_a_new_run_can_be_opened_on_another_machine(store: RunStore) -> None:
    opened = RunStore.open(store.folder)
    assert (opened.study, opened.settings) == (STUDY, SETTINGS)
    assert opened.run == store.run
    assert len(store.run) == 32
    assert opened.history() == []
    assert opened.last_round() is None


def test_runs_have_different_names(store: RunStore, tmp_path: Path) -> None:
    assert RunStore.create(tmp_path / "second", STUDY, SETTINGS).run != store.run


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match="is not empty"):
        RunStore.create(tmp_path, STUDY, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be a run folder"):
            RunStore.create(path, STUDY, SETTINGS)
    assert (tmp_path / "file").read_text() == "kept"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert RunStore.create(tmp_path, STUDY, SETTINGS).folder == tmp_path


def test_where_there_is_no_run_there_is_nothing_to_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        RunStore.open(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"run": 3}', b'{"run": "../x"}', b'{"run": null}', b"[" * 100_000]
)
def test_an_unreadable_run_file_is_an_error_in_words(store: RunStore, content: bytes) -> None:
    (store.folder / "run.json").write_bytes(content)
    with pytest.raises(FlexMoeError, match=r"run\.json"):
        _ = store.run


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"text"'])
def test_unreadable_metrics_are_an_error_in_words(store: RunStore, content: bytes) -> None:
    (store.folder / "metrics.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics\.json"):
        store.metrics()


def test_a_run_that_has_not_finished_has_neither_metrics_nor_results(store: RunStore) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.json: No such file"):
        store.metrics()
    with pytest.raises(CheckpointError, match=r"results\.json"):
        store.results()


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"seed = [", b"seed = -1", b"sead = 1", b"method = 3", b"seed = 1" + b"0" * 9999],
)
def test_unreadable_settings_are_an_error_in_words(store: RunStore, content: bytes) -> None:
    (store.folder / "config.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.toml"):
        _ = store.settings


def test_an_unreadable_study_is_an_error_in_words(store: RunStore) -> None:
    (store.folder / "study.toml").unlink()
    with pytest.raises(InputError, match=r"study\.toml"):
        _ = store.study


def test_metrics_and_results_read_back(store: RunStore) -> None:
    store.save_metrics({"auroc": 0.5})
    store.save_results(ARRAYS, {"rounds": 2})
    assert store.metrics() == {"auroc": 0.5}
    arrays, facts = store.results()
    np.testing.assert_array_equal(arrays["x"], ARRAYS["x"])
    assert facts == {"rounds": 2}


def test_nothing_that_is_not_json_is_written(store: RunStore) -> None:
    store.save_metrics({"auroc": 0.5})
    for write in (store.save_metrics, store.append_history):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write({"auroc": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.save_round(1, ARRAYS, {"loss": float("inf")})
    assert store.metrics() == {"auroc": 0.5}
    assert store.history() == []
    assert store.last_round() is None


def test_a_write_that_fails_leaves_the_old_file(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(file: int) -> None:
        raise OSError("no space left")

    store.save_metrics({"auroc": 0.5})
    before = sorted(store.folder.iterdir())
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="no space left"):
        store.save_metrics({"auroc": 0.9})
    assert store.metrics() == {"auroc": 0.5}
    assert sorted(store.folder.iterdir()) == before


def test_the_last_two_rounds_are_kept_and_the_newest_readable_one_is_used(store: RunStore) -> None:
    for number in range(4):
        store.save_round(number, ARRAYS, {"round": number})
    assert {file.stem for file in (store.folder / "checkpoint").iterdir()} == {"round-00002", "round-00003"}
    (store.folder / "checkpoint" / "round-00003.json").write_text("{")
    stored = store.last_round()
    assert stored is not None
    assert stored[1] == {"round": 2}
    assert "round-00003.json" in stored[2][0]


def test_without_a_readable_round_the_files_are_named(store: RunStore) -> None:
    store.save_round(0, ARRAYS, {})
    (store.folder / "checkpoint" / "round-00000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"nothing to resume from .*round-00000\.safetensors"):
        store.last_round()


@pytest.mark.parametrize("torn", ['{"round": 3, "sec', "\x00\x00\x00", "\x80"])
def test_a_line_that_a_kill_cut_short_is_left_out_and_written_over(store: RunStore, torn: str) -> None:
    for number in (1, 2):
        store.append_history(row(number))
    with (store.folder / "history.jsonl").open("ab") as file:
        file.write(torn.encode("latin-1"))
    assert store.history() == [row(1), row(2)]
    store.rewind_history(2)
    store.append_history(row(3))
    assert store.history() == [row(1), row(2), row(3)]


def test_rewinding_forgets_later_rounds_only(store: RunStore) -> None:
    for number in range(1, 5):
        store.append_history(row(number))
    store.rewind_history(2)
    assert store.history() == [row(1), row(2)]
    store.rewind_history(0)
    assert store.history() == []
    assert (store.folder / "history.jsonl").read_text() == ""


def test_each_round_is_one_line(store: RunStore) -> None:
    store.append_history({"round": 1, "failed": {"north": "a\nb\u2028c"}})
    (line,) = (store.folder / "history.jsonl").read_text().split("\n")[:-1]
    assert json.loads(line) == store.history()[0]


def test_events_are_what_is_no_round(store: RunStore) -> None:
    assert store.events() == []
    store.append_event({"refused_nodes": {"7": "a reason"}})
    store.append_event(row(1))
    store.append_event({"refused_checkpoint": "broken"})
    assert store.events() == [{"refused_nodes": {"7": "a reason"}}, {"refused_checkpoint": "broken"}]
    assert store.history() == []


@pytest.mark.parametrize("torn", [b'{"refused_checkpoint": "bro', b"\x00\x00", b"\x80"])
def test_events_after_one_that_a_kill_cut_short_are_kept(store: RunStore, torn: bytes) -> None:
    store.append_event({"refused_checkpoint": "first"})
    with (store.folder / "events.jsonl").open("ab") as file:
        file.write(torn)
    assert store.events() == [{"refused_checkpoint": "first"}]
    store.append_event({"refused_checkpoint": "second"})
    store.append_event({"refused_checkpoint": "third"})
    assert [event["refused_checkpoint"] for event in store.events()] == ["first", "second", "third"]


def test_a_run_without_a_roster_has_none(store: RunStore) -> None:
    assert store.roster is None


def test_a_roster_reads_back_and_is_replaced(store: RunStore) -> None:
    enrolled = datetime(2026, 3, 1, tzinfo=UTC)
    north, south = (
        Member(**enrollment_of(site).model_dump(exclude={"format"}), enrolled=enrolled) for site in ("north", "south")
    )
    for members in ((north,), (north, south)):
        store.save_roster(Roster(members=members))
        assert RunStore.open(store.folder).roster == Roster(members=members)


def test_a_broken_roster_is_an_error_in_words_and_not_no_roster(store: RunStore) -> None:
    (store.folder / "roster.json").write_text("{")
    with pytest.raises(InputError, match=r"roster\.json"):
        _ = store.roster
