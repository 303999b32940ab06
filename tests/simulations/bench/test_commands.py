"""What the commands print and write; not how long anything takes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from flexmoe_core.settings import MethodSettings, ModelSettings, paper
from simulations.bench import modalities, private
from simulations.bench.commands import run_step_bench
from simulations.bench.workload import build_workload
from simulations.cli import main

TINY = MethodSettings(
    model=ModelSettings(tokens=2, width=16, experts=4, active_experts=2, expert_width=16, encoder_hidden=8)
)


def test_step_prints_ratios_and_writes_them(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    run_step_bench(console, TINY, tmp_path / "step.json", [torch.device("cpu")], [2], 3, 2)
    text = console.export_text()
    assert "reference / ours" in text
    assert "float32" in text and "bfloat16" in text
    result = json.loads((tmp_path / "step.json").read_text())
    assert [(row["precision"], row["batch"]) for row in result["timings"]] == [("float32", 2), ("bfloat16", 2)]
    for row in result["timings"]:
        assert min(row[name] for name in ("ours_ms", "reference_ms", "floor_ms", "peak", "ours_over_floor")) > 0
    assert result["machine"]["torch"] and result["machine"]["cpu"] and result["machine"]["threads"] >= 1


def test_modalities_measures_each_row_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("--json", str(tmp_path / "m.json"), "--plot", str(tmp_path / "m.svg"))
    arguments = ("bench", "modalities", "--modalities", "3", "--combinations", "5", "--threads", "1", *files)
    monkeypatch.setattr(sys, "argv", ["flexmoe-sim", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    costs = json.loads((tmp_path / "m.json").read_text())["costs"]
    assert [(row["modalities"], row["bank"]) for row in costs] == [(3, "table"), (3, "compositional")]
    assert all(row["combinations"] == 5 and row["resident_bytes"] > 2**20 and row["step_s"] > 0 for row in costs)
    assert "parameters of the bank" in (tmp_path / "m.svg").read_text()


def test_dp_sets_the_private_step_beside_the_ordinary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(private, "CHOSEN", ("small",))
    file = tmp_path / "dp.json"
    arguments = ("--device", "cpu", "--batch", "4", "--repetitions", "1", "--threads", "1", "--json", str(file))
    monkeypatch.setattr(sys, "argv", ["flexmoe-sim", "bench", "dp", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "private memory" in capsys.readouterr().out
    result = json.loads(file.read_text())
    (row,) = result["costs"]
    assert (result["batch"], row["preset"], row["device"]) == (4, "small", "cpu")
    assert min(row[name] for name in ("ordinary_ms", "private_ms", "ratio")) > 0
    assert min(row[name] for name in ("ordinary_bytes", "private_bytes")) > 2**20


def test_the_published_bank_grows_with_every_combination_and_ours_with_the_observed() -> None:
    assert modalities.paper_bank_parameters(4, paper().model) == 122_880
    assert modalities.paper_bank_parameters(16, paper().model) == (2**16 - 1) * 16 * 16 * 128
    sizes = {bank: modalities.measure(12, 20, bank, TINY, batch=2).bank_parameters for bank in modalities.BANKS}
    assert sizes["table"] <= (12 + 21 * 12) * 2 * 16
    assert sizes["compositional"] == (12 + 12 * 12) * 2 * 16


def test_a_workload_has_the_combinations_that_it_was_asked_for() -> None:
    assert len(build_workload(12, 40, 4, patients=2000, features=2).cohort.masks_B.unique()) == 40
    assert len(build_workload(3, 100, 4, patients=2000, features=2).cohort.masks_B.unique()) == 7
