from __future__ import annotations

from pathlib import Path

import pytest

from flexmoe_core.errors import InputError
from server.settings import RunSettings
from simulations.baselines.private_logistic import LogisticSettings
from simulations.benchmark_data import Synthetic
from simulations.results import RESULTS, read_lines
from simulations.studies import privacy_jobs as module
from simulations.studies.privacy_arms import Arm
from simulations.studies.privacy_jobs import Job, JobResult, jobs_of, run_job, run_jobs
from tests.simulations.federations import tiny_settings
from tests.simulations.studies.results import made_up

DATA = Synthetic(sites=2, modalities=3, patients_per_site=40, missing=0.4)
LOGISTIC, MAJORITY = Arm(family="logistic"), Arm(family="majority")
TRAINING = {
    "none": tiny_settings("federation.rounds=2"),
    "site": tiny_settings("federation.rounds=2", "privacy.site.epsilon=8", "privacy.site.cohort=2"),
    "logistic": LogisticSettings(epsilon=8.0, rounds=2),
    "majority": None,
}


class Jobs:
    """Stands for the work of a job, and counts it."""

    def __init__(self) -> None:
        self.done = list[Job]()

    def __call__(self, job: Job) -> JobResult:
        self.done.append(job)
        return made_up(job)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    fake = Jobs()
    monkeypatch.setattr(module, "run_job", fake)
    return fake


def test_a_stopped_study_goes_on_where_it_was(jobs: Jobs, tmp_path: Path) -> None:
    some = jobs_of([DATA], [LOGISTIC, MAJORITY], [0, 1])
    assert [is_new for _, is_new in run_jobs(tmp_path, some[:3])] == [True] * 3
    assert [is_new for _, is_new in run_jobs(tmp_path, some)] == [False] * 3 + [True]
    assert jobs.done == some == [line.job for line in read_lines(tmp_path / RESULTS, JobResult)]


def test_other_settings_are_another_job(jobs: Jobs, tmp_path: Path) -> None:
    for rounds in (2, 3, 2):
        training = tiny_settings(f"federation.rounds={rounds}")
        list(run_jobs(tmp_path, [Job(data=DATA, arm=Arm(family="none"), seed=0, training=training)]))
    assert len(jobs.done) == 2


def test_seeds_are_whole_one_after_the_other() -> None:
    found = jobs_of([DATA, DATA.model_copy(update={"missing": 0.1})], [LOGISTIC, MAJORITY], [4, 2])
    assert [job.seed for job in found] == [4] * 4 + [2] * 4


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        list(run_jobs(tmp_path, jobs_of([DATA], [MAJORITY], [0])))


@pytest.mark.parametrize("family", ["none", "site", "logistic", "majority"])
def test_a_job_tests_every_patient_attacks_a_model_and_counts_the_cost(family: str) -> None:
    training = TRAINING[family]
    arm = Arm.model_validate({"family": family, "epsilon": 8.0 if family in ("site", "logistic") else None})
    found = run_job(Job(data=DATA, arm=arm, seed=0, training=training))
    patients = DATA.load(0).patients["split"].value_counts()
    together, *each = found.results
    assert [one.site for one in found.results] == [None, "site-1", "site-2"]
    assert together.n == sum(one.n for one in each) == patients["test"]
    assert JobResult.model_validate_json(found.model_dump_json()) == found
    if training is None:
        assert (found.membership, found.epsilon, found.bytes_up) == (None, None, None)
        return
    assert found.membership is not None
    assert (found.membership.members, found.membership.non_members) == (patients["train"], patients["validation"])
    assert 0.0 <= found.membership.auc <= 1.0
    assert found.bytes_up is not None
    assert found.bytes_up > 0
    if arm.epsilon is None:
        assert (found.epsilon, found.delta) == (None, None)
    else:
        assert found.epsilon is not None
        assert 7.5 < found.epsilon <= 8.0
        assert found.delta == (1e-2 if isinstance(training, RunSettings) else 1e-3)
