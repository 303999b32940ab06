"""``flexmoe-sim run`` as a user types it: results, and every way in which it can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client.site import Site
from server.federation import Federation
from server.progress import round_progress
from server.run_store import RunStore
from simulations.runs import simulate, site_bundle, site_folders
from tests.simulations.datasets.folders import contents
from tests.simulations.federations import SITES, tiny_settings, tiny_study
from tests.simulations.test_cli import flexmoe_sim

QUICK = ("--rounds", 1, "--set", "method.model.width=16", "--set", "method.model.expert_width=16")
Command = Callable[..., int]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Gives the exit code of ``flexmoe-sim run`` with some arguments."""
    return lambda *arguments: flexmoe_sim(monkeypatch, "run", *arguments)


def assert_refused(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Problems and nothing else, each on a line of its own; gives the lines."""
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "Traceback" not in streams.err
    lines = streams.err.splitlines()
    assert all(line.startswith("flexmoe-sim: ") for line in lines)
    for word in words:
        assert word in streams.err
    return lines


def test_a_run_writes_results_and_report(
    study: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(study, "--out", tmp_path / "run", *QUICK, "--seed", 4) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "run" / "metrics.json") in out.replace("\n", "")
    assert str(tmp_path / "run" / "report.html") in out.replace("\n", "")
    store = RunStore.open(tmp_path / "run")
    assert store.settings.seed == 4
    assert store.settings.method.model.width == 16
    assert store.metrics()["rounds"] == 1
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_a_finished_run_that_is_resumed_stays_as_it_is(study: Path, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    simulate(study, run, tiny_settings("federation.rounds=1"))
    metrics, rest = json.loads((run / "metrics.json").read_text()), contents(run)
    assert command(study, "--out", run, "--resume") == 0
    again = json.loads((run / "metrics.json").read_text())
    assert [one["seconds"].pop("total") > 0 for one in (metrics, again)] == [True, True]
    assert again == metrics
    changed = {name for name, data in contents(run).items() if rest.get(name) != data}
    records = {name for name in changed if Path(name).name == "audit.jsonl"}
    assert len(records) == 1 + len(SITES)
    assert all(contents(run)[name].startswith(rest[name]) for name in records)
    assert changed - records <= {"metrics.json", "report.html", *(f"{name}.head" for name in records)}


def test_all_problems_of_settings_and_folders_come_at_once_and_nothing_is_written(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tmp_path / "sites")
    for site, column in (("site-1", "signal_1"), ("site-3", "level")):
        table = study / site / "modality_1.csv"
        table.write_text(table.read_text().replace(column, "renamed", 1))
    wrong = ("--set", "method.model.widht=64", "--set", "federation.quorum=0", "--preset", "papre")
    assert command(study, "--out", tmp_path / "run", *wrong) == 2
    lines = assert_refused(
        capsys, "Did you mean 'width'?", "federation.quorum", "papre", "site-1/", "signal_1", "site-3/", "level"
    )
    assert len(lines) == 5
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "federation.quorum=4"), "federation.quorum: is 4, but there are 3 sites"),
        (("--set", "nonsense"), "is not of the form key=value"),
        (("--engine", "ray", "--processes", 2), "--processes: is for the inprocess engine"),
        (("--resume",), "holds no run"),
        (("--resume", "--set", "seed=1"), "--resume: cannot be combined with new settings"),
        (("--resume", "--rounds", 3), "--resume: cannot be combined with new settings"),
        (("--resume", "--seed", 0), "--resume: cannot be combined with new settings"),
        (("--resume", "--preset", "small"), "--resume: cannot be combined with new settings"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    study: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    words: str,
) -> None:
    assert command(study, "--out", tmp_path / "run", *arguments) == 2
    assert len(assert_refused(capsys, words)) == 1
    assert not (tmp_path / "run").exists()


def test_folders_that_are_none_are_refused(
    study: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path / "nowhere", "--out", tmp_path / "run") == 2
    assert_refused(capsys, "study.toml: the file does not exist")
    (tmp_path / "file").write_text("kept")
    assert command(study, "--out", tmp_path / "file", *QUICK) == 2
    assert "cannot be a run folder" in capsys.readouterr().err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("kept")
    assert command(study, "--out", tmp_path / "used", *QUICK) == 2
    assert "is not empty" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "used"]


def test_a_failed_run_ends_with_exit_code_1(
    study: Path,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(site: Site, request: bytes) -> bytes:
        raise ValueError("no")

    monkeypatch.setattr(Site, "train", failing)
    assert command(study, "--out", tmp_path / "run", *QUICK) == 1
    streams = capsys.readouterr()
    last = streams.err.splitlines()[-1]
    assert last.startswith("flexmoe-sim: only 0 of 1 rounds were aggregated, 1 are needed")
    assert [site in streams.out for site in SITES] == [True] * 3


def test_a_run_that_cannot_be_read_ends_with_exit_code_2(
    study: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    simulate(study, run, tiny_settings("federation.rounds=1"))
    for name, damage in (("checkpoint/round-00001.json", ""), ("checkpoint/round-00000.json", "{"), ("run.json", "")):
        (run / name).write_text(damage)
        if name != "checkpoint/round-00001.json":
            assert command(study, "--out", run, "--resume") == 2
            err = capsys.readouterr().err
            assert name in err
            assert "Traceback" not in err


def test_an_error_of_ours_is_not_hidden(
    study: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(federation: Federation) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Federation, "run", broken)
    with pytest.raises(ZeroDivisionError):
        command(study, "--out", tmp_path / "run", *QUICK)


def test_the_ray_engine_refuses_what_it_would_ignore(study: Path, tmp_path: Path) -> None:
    for option in ({"sites": ["site-1"]}, {"processes": 1}):
        with pytest.raises(ValueError, match="options of the engine inprocess"):
            simulate(study, tmp_path / "run", tiny_settings(), engine="ray", **option)
    assert not (tmp_path / "run").exists()


def test_some_of_the_sites_can_run_alone(study: Path, tmp_path: Path) -> None:
    assert list(site_folders(study)) == list(SITES)
    store = simulate(study, tmp_path / "run", tiny_settings("federation.rounds=1"), sites=["site-2"])
    assert list(store.metrics()["test"]["sites"]) == ["site-2"]
    assert (site_bundle(store, "site-2") / "model.json").is_file()


ROW: dict[str, Any] = {
    "round": 1,
    "stage": "generalize",
    "missing": ["west"],
    "failed": {"north": "error 2: [/red] it broke"},
    "dropped": {"south": ["[bold]shape (2,)", "second"]},
    "loss": {"east": 0.5},
    "validation": {"pooled": {"auroc": None, "accuracy": 0.75}, "sites": {}},
}


def test_the_terminal_shows_who_failed_in_the_words_that_came(capsys: pytest.CaptureFixture[str]) -> None:
    with round_progress(Console(width=100), rounds=2) as observe:
        observe({"refused_nodes": {"node 12": "[/] a second site calls itself north"}})
        observe({"refused_checkpoint": "/run[/x]/round-00002.json: not whole JSON"})
        observe(ROW)
        observe({**ROW, "missing": [], "failed": {}, "dropped": {}, "loss": {}, "validation": {"pooled": None}})
    out = capsys.readouterr().out
    for words in (
        "Goes without node 12: [/] a second site calls itself north",
        "Passed over a broken checkpoint: /run[/x]/round-00002.json: not whole JSON",
        "Round 1: west: no answer before the deadline",
        "Round 1: north: error 2: [/red] it broke",
        "Round 1: south: [bold]shape (2,); second",
    ):
        assert words in out
