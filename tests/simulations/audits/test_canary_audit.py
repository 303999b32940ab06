from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flexmoe_core.privacy.accounting import epsilon_of
from flexmoe_core.privacy.events import SampledGaussian
from simulations.audits import canary_audit as module
from simulations.audits.builds import BROKEN
from simulations.audits.canary_audit import (
    CanaryResult,
    CanaryRun,
    Schedule,
    audit_canaries,
    audit_run,
    bound_of,
)

ONE_STEP = {"rounds": 1, "sampling_rate": 1.0}


def run(build: str = "shipped", epsilon: float = 2.0, number: int = 0, **changes: object) -> CanaryRun:
    fields = {"delta": 1e-5, "schedule": ONE_STEP, "size": "small", "canaries": 1000, "ordinary": 100}
    return CanaryRun.model_validate(fields | {"build": build, "epsilon": epsilon, "number": number} | changes)


def test_the_claim_is_the_ledger_s() -> None:
    schedule = {"rounds": 3, "sampling_rate": 0.3}
    result = audit_run(run(canaries=100, ordinary=20, schedule=schedule))
    event = SampledGaussian(sampling_rate=0.3, noise_multiplier=result.noise_multiplier, steps=3)
    assert result.claimed == pytest.approx(epsilon_of([event], 1e-5))
    assert 1.9 < result.claimed <= 2.0
    assert not result.is_caught


def test_a_right_build_is_not_caught_and_none_is_no_claim() -> None:
    shipped, plain = audit_run(run()), audit_run(run("no privacy"))
    assert shipped.claimed is not None
    assert 0.0 <= shipped.bound < shipped.claimed
    assert plain.bound > 3.0
    assert plain.claimed is None
    assert not plain.is_caught


@pytest.mark.parametrize("build", BROKEN)
def test_a_wrong_build_is_caught(build: str) -> None:
    result = audit_run(run(build))
    assert result.is_caught, f"proven {result.bound:.2f} of claimed {result.claimed}"


@pytest.mark.slow
@pytest.mark.parametrize("build", BROKEN)
def test_a_wrong_build_is_caught_in_eight_of_ten_runs(build: str) -> None:
    assert sum(audit_run(run(build, number=number)).is_caught for number in range(10)) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0, 8.0])
def test_no_claim_of_the_shipped_build_is_refuted(epsilon: float, size: str) -> None:
    schedules = [ONE_STEP] if size == "paper" else [ONE_STEP, {"rounds": 8, "sampling_rate": 0.25}]
    for schedule in schedules:
        result = audit_run(run(epsilon=epsilon, size=size, schedule=schedule))
        assert not result.is_caught, f"proven {result.bound:.2f} of claimed {result.claimed}"


def test_the_auditor_needs_no_luck_with_the_number_of_guesses() -> None:
    included = np.arange(1000) < 500
    assert bound_of(included.astype(float), included, 1e-5).guesses == 800
    assert bound_of(np.zeros(1000), np.arange(1000) % 2 == 0, 1e-5).epsilon == 0.0


def test_runs_that_are_there_are_not_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[int] = []

    def fake(one: CanaryRun) -> CanaryResult:
        done.append(one.number)
        facts = {"noise_multiplier": 1.0, "claimed": 2.0, "bound": 0.5, "guesses": 100, "correct": 60}
        return CanaryResult.model_validate({"run": one, **facts, "scores": (0.1,), "included": (True,)})

    monkeypatch.setattr(module, "audit_run", fake)
    list(audit_canaries(tmp_path, [run(number=number) for number in range(2)]))
    results = list(audit_canaries(tmp_path, [run(number=number) for number in range(3)]))
    assert done == [0, 1, 2]
    assert [one.run.number for one in results] == [0, 1, 2]


def test_schedules_have_names() -> None:
    assert Schedule(rounds=1, sampling_rate=1.0).title == "1 step of everybody"
    assert Schedule(rounds=10, sampling_rate=0.2).title == "10 steps of 20%"
