"""What the measurement counts, and the sizes that masks add; the times are for ``flexmoe-sim bench secure``."""

import json
import sys
from pathlib import Path

import pytest

from simulations.bench.machine import this_machine
from simulations.bench.secure import measure
from simulations.cli import main


def test_masks_at_most_double_what_a_site_sends() -> None:
    result = measure(this_machine(), sites=10, parameters=200_000, repetitions=1)
    assert result.bytes_plain == pytest.approx(4 * 200_000, rel=0.01)
    assert 2.0 < result.ratio < 2.05
    assert result.bytes_beside < 20_000
    assert result.masked_s > result.plain_s


def test_the_command_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "secure", "--sites", "3", "--parameters", "640", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", ["flexmoe-sim", *arguments, "--json", str(tmp_path / "secure.json")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    result = json.loads((tmp_path / "secure.json").read_text())
    assert (result["sites"], result["threshold"], result["parameters"]) == (3, 2, 640)
    assert "Unmasking" in capsys.readouterr().out
