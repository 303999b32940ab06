from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flexmoe_core.errors import InputError
from simulations.cli import app


@pytest.mark.slow
def test_the_demo_ends_in_a_table_and_a_report_and_can_be_repeated(tmp_path: Path) -> None:
    command = ["demo", "--out", str(tmp_path / "demo"), "--set", "federation.rounds=2"]
    for _ in range(2):
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0
        for word in ("all hospitals", "va-long-beach", "local only", "pooled logistic regression", "majority class"):
            assert word in done.output
        report = (tmp_path / "demo" / "run" / "report.html").read_text()
        assert "pooled logistic regression" in report
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["hospitals", "run"]


def test_the_demo_replaces_nothing_but_a_demo(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no demo"):
        CliRunner().invoke(app, ["demo", "--out", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
