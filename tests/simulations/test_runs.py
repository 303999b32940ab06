from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.site import Site
from flexmoe_core.errors import CheckpointError, InputError, RunFailed
from server.run_store import RunStore
from server.settings import settings_with
from simulations.engines.faults import Fault, FaultPlan
from simulations.runs import simulate, site_folders
from tests.simulations.federations import SITES, checkpoint_bytes, tiny_settings, tiny_study


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it and nothing is tidied up."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return simulate(study, tmp_path_factory.mktemp("run") / "run", tiny_settings())


def test_a_run_writes_its_results(finished: RunStore) -> None:
    metrics = finished.metrics()
    assert metrics["rounds"] == 4
    assert set(metrics["test"]["sites"]) == set(SITES)
    sites = metrics["test"]["sites"].values()
    assert metrics["test"]["pooled"]["n"] == sum(site["n"] for site in sites)
    assert metrics["test"]["pooled"]["auroc"] > 0.6
    assert metrics["bytes"]["up"] > 0
    assert metrics["missing"] == {}
    assert [row["round"] for row in finished.history()] == [1, 2, 3, 4]
    assert [row["stage"] for row in finished.history()] == ["generalize"] + ["specialize"] * 3


def test_config_repeats_the_run(study: Path, finished: RunStore, tmp_path: Path) -> None:
    again = simulate(study, tmp_path / "run", finished.settings)
    assert checkpoint_bytes(again.folder) == checkpoint_bytes(finished.folder)
    assert again.run != finished.run


def test_another_seed_gives_another_model(study: Path, finished: RunStore, tmp_path: Path) -> None:
    other = simulate(study, tmp_path / "run", tiny_settings("seed=1"))
    assert checkpoint_bytes(other.folder).keys() == checkpoint_bytes(finished.folder).keys()
    assert checkpoint_bytes(other.folder) != checkpoint_bytes(finished.folder)


def test_worker_processes_change_no_bit(study: Path, finished: RunStore, tmp_path: Path) -> None:
    other = simulate(study, tmp_path / "run", tiny_settings(), processes=2)
    assert checkpoint_bytes(other.folder) == checkpoint_bytes(finished.folder)


def test_a_coordinator_killed_between_rounds_resumes_to_the_same_bits(
    study: Path, finished: RunStore, tmp_path: Path
) -> None:
    def kill_after_round_2(row: dict[str, object]) -> None:
        if row["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", tiny_settings(), observe=kill_after_round_2)
    resumed = simulate(study, tmp_path / "run", None)
    assert checkpoint_bytes(resumed.folder) == checkpoint_bytes(finished.folder)
    assert [row["round"] for row in resumed.history()] == [1, 2, 3, 4]
    assert resumed.metrics()["test"] == finished.metrics()["test"]


def test_a_site_killed_in_its_round_resumes_to_the_same_bits_without_training_again(
    study: Path, finished: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = Site.train, []

    def killing_train(site: Site, request: bytes) -> bytes:
        trained.append(site.folder.name)
        if len(trained) == 8:  # the second of three sites in round 3
            raise Killed
        return train(site, request)

    monkeypatch.setattr(Site, "train", killing_train)
    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", tiny_settings())
    monkeypatch.setattr(Site, "train", train)
    stored = {path: path.read_bytes() for path in (tmp_path / "run").glob("sites/site-1/*/answer.bin")}

    resumed = simulate(study, tmp_path / "run", None)
    assert len(stored) == 1
    assert checkpoint_bytes(resumed.folder) == checkpoint_bytes(finished.folder)


def test_the_same_request_gets_the_stored_answer(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, answers = Site.train, []

    def asking_twice(site: Site, request: bytes) -> bytes:
        first = train(site, request)
        monkeypatch.setattr("client.open_answers.train_round", None)  # training again would be an error
        answers.append((first, train(site, request)))
        monkeypatch.undo()
        monkeypatch.setattr(Site, "train", asking_twice)
        return first

    monkeypatch.setattr(Site, "train", asking_twice)
    simulate(study, tmp_path / "run", tiny_settings("federation.rounds=1"))
    assert len(answers) == 3
    assert all(first == second for first, second in answers)


@pytest.mark.slow
def test_a_run_killed_by_the_operating_system_resumes_to_the_same_bits(
    study: Path, finished: RunStore, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    script = (
        "import sys; from pathlib import Path; from simulations.runs import simulate; "
        "from tests.simulations.federations import tiny_settings; "
        "simulate(Path(sys.argv[1]), Path(sys.argv[2]), tiny_settings())"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(study), str(run)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not list(run.glob("checkpoint/round-00002.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    resumed = simulate(study, run, None)
    assert checkpoint_bytes(resumed.folder) == checkpoint_bytes(finished.folder)


def test_a_truncated_checkpoint_is_refused_by_name_and_the_previous_one_is_used(
    study: Path, finished: RunStore, tmp_path: Path
) -> None:
    def kill_after_round_3(row: dict[str, object]) -> None:
        if row["round"] == 3:
            raise Killed

    with pytest.raises(Killed):
        simulate(study, tmp_path / "run", tiny_settings(), observe=kill_after_round_3)
    broken = tmp_path / "run" / "checkpoint" / "round-00002.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    seen: list[object] = []
    resumed = simulate(study, tmp_path / "run", None, observe=lambda row: seen.append(row.get("refused_checkpoint")))
    assert "round-00002.safetensors" in str(seen[0])
    assert checkpoint_bytes(resumed.folder) == checkpoint_bytes(finished.folder)


def test_without_any_readable_checkpoint_the_files_are_named(study: Path, finished: RunStore, tmp_path: Path) -> None:
    simulate(study, tmp_path / "run", tiny_settings("federation.rounds=1"))
    for file in (tmp_path / "run" / "checkpoint").glob("*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="round-00001"):
        simulate(study, tmp_path / "run", None)


@pytest.mark.parametrize("kind", ["drop", "delay", "raise", "corrupt"])
def test_a_faulty_site_costs_its_own_round_and_is_named(study: Path, tmp_path: Path, kind: str) -> None:
    faults = FaultPlan((Fault("site-2", kind, nth=2),))  # after the handshake and round 1
    store = simulate(study, tmp_path / "run", tiny_settings(), faults=faults)
    row = store.history()[1]
    assert row["answered"] == ["site-1", "site-3"]
    assert row["aggregated"]
    told = {"drop": row["missing"], "delay": row["missing"], "raise": row["failed"], "corrupt": row["dropped"]}[kind]
    assert list(told) == ["site-2"]
    assert store.history()[2]["answered"] == list(SITES)


def test_a_run_fails_when_too_few_rounds_were_aggregated(study: Path, tmp_path: Path) -> None:
    faults = FaultPlan(tuple(Fault("site-1", "raise", nth=nth) for nth in (1, 2)))
    with pytest.raises(RunFailed, match="only 2 of 4 rounds"):
        simulate(study, tmp_path / "run", tiny_settings("federation.quorum=3"), faults=faults)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_missing_quorum_at_the_handshake_names_the_sites(study: Path, tmp_path: Path) -> None:
    faults = FaultPlan((Fault("site-1", "raise", nth=0),))
    with pytest.raises(RunFailed, match="2 of 3 needed sites"):
        simulate(study, tmp_path / "run", tiny_settings("federation.quorum=3"), faults=faults)


def test_labels_of_test_patients_are_not_read_before_the_finish(
    study: Path, finished: RunStore, tmp_path: Path
) -> None:
    blinded = tiny_study(tmp_path / "sites")
    for file in blinded.glob("*/patients.csv"):
        lines = [line.split(",") for line in file.read_text().splitlines()]
        label, split = lines[0].index("label"), lines[0].index("split")
        for line in lines[1:]:
            if line[split] == "test":
                line[label] = "unread"
        file.write_text("\n".join(",".join(line) for line in lines) + "\n")
    with pytest.raises(RunFailed, match="0 of 1 needed sites scored"):
        simulate(blinded, tmp_path / "run", tiny_settings())
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(finished.folder)


def test_early_stop_ends_the_run(study: Path, tmp_path: Path) -> None:
    changes = ("federation.early_stop.patience=1", "federation.early_stop.metric=log_loss", "federation.rounds=30")
    store = simulate(study, tmp_path / "run", tiny_settings(*changes))
    history = store.history()
    assert store.metrics()["rounds"] == len(history) < 30
    values = [row["validation"]["pooled"]["log_loss"] for row in history]
    assert values[-1] >= min(values[:-1])


def test_local_encoders_and_heads_stay_at_the_site(study: Path, tmp_path: Path) -> None:
    store = simulate(study, tmp_path / "run", tiny_settings('federation.local_groups=["head", "router"]'))
    arrays, _, _ = store.last_round()
    assert not [name for name in arrays if "head." in name or ".router." in name]
    assert store.metrics()["test"]["pooled"]["auroc"] > 0.6


def test_a_folder_that_is_in_use_is_refused(study: Path, finished: RunStore) -> None:
    with pytest.raises(InputError, match="not empty"):
        simulate(study, finished.folder, tiny_settings())


def test_a_folder_without_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder with a site\.toml"):
        site_folders(tmp_path)


def test_settings_collect_every_problem() -> None:
    with pytest.raises(InputError) as caught:
        settings_with(["method.model.widht=64", "federation.rounds=0", "nonsense", "method.model.width.x=1"])
    text = str(caught.value)
    assert len(caught.value.problems) >= 4
    assert "Did you mean 'width'?" in text


def test_history_is_json_without_patient_values(finished: RunStore) -> None:
    text = (finished.folder / "history.jsonl").read_text()
    assert all(json.loads(line)["seconds"] > 0 for line in text.splitlines())
