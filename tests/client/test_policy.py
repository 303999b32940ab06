"""policy.toml: what it refuses, that it fails closed, and that no patient is read before it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from client.check import check_site
from client.ledger import Caps
from client.policy import POLICY_FILE, Policy, check_policy, read_policy, study_hash
from client.site import Site
from flexmoe_core.audit_facts import BUNDLE_VARIABLE
from flexmoe_core.errors import InputError, PolicyRefusal
from flexmoe_core.messages import Terms
from flexmoe_core.privacy.settings import PrivacySettings
from tests.client.conftest import SiteFolder
from tests.client.coordinator import METHOD, RUN, coordinate, make_cpu_site
from tests.client.test_app import asked, failure_id, node_config

PATIENT = {"patient": {"epsilon": 3.0, "delta": 1e-3}}
MASKED = {"secure_aggregation": {"threshold": 4}}


def terms_with(site: SiteFolder, privacy: dict[str, Any] | None = None, min_cell: int = 5) -> Terms:
    method = METHOD.model_dump()
    method["losses"]["balance"] = 0.0
    method["site"] |= {"intercept": 0.0, "regression": ()}
    settings = PrivacySettings.model_validate(privacy or {})
    return Terms.model_validate(
        {
            "run": RUN,
            "seed": 0,
            "study": site.study().model_dump(),
            "method": method,
            "min_cell": min_cell,
            "rounds": 4,
            "privacy": settings.model_dump(),
        }
    )


def reasons(policy: str, terms: Terms, tmp_path: Path, secret: bool = True, bundle: str | None = None) -> list[str]:
    (tmp_path / POLICY_FILE).write_text(policy)
    found = read_policy(tmp_path)
    assert found is not None
    try:
        check_policy(found, terms, secret, bundle)
    except PolicyRefusal as refusal:
        return list(refusal.reasons)
    return []


@pytest.mark.parametrize(
    ("policy", "privacy", "refused_for"),
    [
        ("", {}, None),
        ("[patient_privacy]", {}, "patient_privacy.required"),
        ("[patient_privacy]\nrequired = false", {}, None),
        ("[patient_privacy]", MASKED, "patient_privacy.required"),
        ("[patient_privacy]", PATIENT, None),
        ("[patient_privacy]\nmax_epsilon_per_study = 2.9", PATIENT, "patient_privacy.max_epsilon_per_study"),
        ("[patient_privacy]\nmax_epsilon_per_study = 3", PATIENT, None),
        ("[patient_privacy]\nmax_epsilon_lifetime = 2.9", PATIENT, "patient_privacy.max_epsilon_lifetime"),
        ("[patient_privacy]\ndelta = 1e-4", PATIENT, "patient_privacy.delta"),
        ("[secure_aggregation]", {}, "secure_aggregation.required"),
        ("[secure_aggregation]", MASKED, None),
        ("[secure_aggregation]\nmin_cohort = 5", MASKED, "secure_aggregation.min_cohort"),
        ("[secure_aggregation]\nrequired = false\nmin_cohort = 5", {}, None),
        ("[disclosure]\nallow_counts = false", {}, "disclosure.allow_counts"),
        ("[disclosure]\nallow_counts = false", MASKED, "disclosure.allow_counts"),
        ("[disclosure]\nallow_counts = false", PATIENT, None),
        ("[disclosure]\nallow_counts = true", {}, None),
        ("[disclosure]\nallow_counts = true\nmin_cell = 6", {}, "disclosure.min_cell"),
    ],
)
def test_each_demand_is_enforced(
    site: SiteFolder, tmp_path: Path, policy: str, privacy: dict[str, Any], refused_for: str | None
) -> None:
    found = reasons(policy, terms_with(site, privacy), tmp_path)
    assert [one.rpartition("(")[2].rstrip(")") for one in found] == ([refused_for] if refused_for else [])


def test_every_reason_is_told_at_once(site: SiteFolder, tmp_path: Path) -> None:
    policy = "[patient_privacy]\n[secure_aggregation]\n[disclosure]\nallow_counts = false"
    assert len(reasons(policy, terms_with(site), tmp_path)) == 3


def test_any_policy_refuses_randomness_that_somebody_may_know(site: SiteFolder, tmp_path: Path) -> None:
    assert ["known to somebody" in one for one in reasons("", terms_with(site), tmp_path, secret=False)] == [True]


def test_only_studies_and_code_on_the_list_run(site: SiteFolder, tmp_path: Path) -> None:
    terms, other = terms_with(site), "0" * 64
    listed = f'[allowed.studies]\nheart = "{study_hash(terms.study)}"\n'
    assert reasons(listed, terms, tmp_path) == []
    assert "heart is not the one" in reasons(f'[allowed.studies]\nheart = "{other}"', terms, tmp_path)[0]
    assert "heart is not on the list" in reasons(f'[allowed.studies]\nlung = "{other}"', terms, tmp_path)[0]
    site.edit("study.toml", "range = [20, 100]", "range = [20, 110]")
    assert "heart is not the one" in reasons(listed, terms_with(site), tmp_path)[0]
    bundles = f'[allowed]\nbundles = ["{other}"]'
    assert reasons(bundles, terms, tmp_path, bundle=other) == []
    assert "1111" in reasons(bundles, terms, tmp_path, bundle="1" * 64)[0]
    assert "no hash" in reasons(bundles, terms, tmp_path)[0]


@pytest.mark.parametrize(
    ("policy", "place", "words"),
    [
        ("[patient_privacy]\nrequried = true", "patient_privacy.requried", "Did you mean 'required'?"),
        ("[patient]", "patient", "Did you mean 'patient_privacy'?"),
        ("[disclosure]\nmin_cell = 9", "disclosure.allow_counts", "is missing"),
        ("[patient_privacy]\nrequired = 'no'", "patient_privacy.required", "boolean"),
        ("[patient_privacy]\nmax_epsilon_lifetime = inf", "patient_privacy.max_epsilon_lifetime", "finite"),
        ("[patient_privacy]\nrequired = false\nmax_epsilon_lifetime = 3", "patient_privacy.required", "would pass"),
        ("[allowed]\nbundles = ['abc']", "allowed.bundles.#1", "pattern"),
        ("[patient_privacy", "end of document", "is not valid TOML"),
    ],
)
def test_what_cannot_be_understood_refuses(tmp_path: Path, policy: str, place: str, words: str) -> None:
    (tmp_path / POLICY_FILE).write_text(policy)
    with pytest.raises(InputError) as caught:
        read_policy(tmp_path)
    (problem,) = caught.value.problems
    assert place in problem.place
    assert words in str(problem)


def test_a_policy_that_is_not_there_demands_nothing_and_a_broken_link_is_no_such(tmp_path: Path) -> None:
    assert read_policy(tmp_path) is None
    (tmp_path / POLICY_FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="does not exist"):
        read_policy(tmp_path)


def test_caps_are_those_of_the_policy() -> None:
    assert Policy().caps(1e-5) == Caps(None, None, 1e-5)
    policy = Policy.model_validate({"patient_privacy": {"max_epsilon_lifetime": 8, "max_epsilon_per_study": 3}})
    assert policy.caps(1e-5) == Caps(8.0, 3.0, 1e-3)


def test_no_question_reads_a_patient_before_the_policy_was_asked(site: SiteFolder, tmp_path: Path) -> None:
    there = make_cpu_site(site.path, tmp_path / "state")
    coordinator = coordinate(site.study(), there)
    site.write(POLICY_FILE, "[patient_privacy]")
    for name in ("patients.csv", "history.csv", "labs.csv", "scan.parquet"):
        (site / name).unlink()
    for question, request in (
        (there.handshake, coordinator.handshake()),
        (there.train, coordinator.train()),
        (there.finish, coordinator.finish(1)),
    ):
        with pytest.raises(PolicyRefusal, match=r"patient_privacy\.required"):
            question(request)


def test_a_stored_answer_does_not_leave_against_the_policy(site: SiteFolder, tmp_path: Path) -> None:
    there = make_cpu_site(site.path, tmp_path / "state")
    coordinator = coordinate(site.study(), there)
    answer = there.train(coordinator.train())
    assert there.train(coordinator.train()) == answer
    site.write(POLICY_FILE, "[patient_privacy]")
    with pytest.raises(PolicyRefusal):
        there.train(coordinator.train())


class KnownSource:
    secret = False

    def bits(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64)


def test_a_known_source_is_refused_by_an_empty_policy(site: SiteFolder, tmp_path: Path) -> None:
    there = Site(site.path, tmp_path / "state", torch.device("cpu"), source=KnownSource())
    coordinator = coordinate(site.study(), there)
    site.write(POLICY_FILE, "")
    with pytest.raises(PolicyRefusal, match="known to somebody"):
        there.train(coordinator.train())


def test_a_site_asks_for_the_code_that_it_runs(
    site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write(POLICY_FILE, f'[allowed]\nbundles = ["{"a" * 64}"]')
    there = make_cpu_site(site.path, tmp_path / "state")
    monkeypatch.setenv(BUNDLE_VARIABLE, "a" * 64)
    coordinator = coordinate(site.study(), there)
    monkeypatch.setenv(BUNDLE_VARIABLE, "b" * 64)
    with pytest.raises(PolicyRefusal, match=r"allowed\.bundles"):
        there.train(coordinator.train())


def test_the_coordinator_learns_nothing_of_the_policy_and_the_site_everything(
    site: SiteFolder, tmp_path: Path
) -> None:
    coordinator = coordinate(site.study(), make_cpu_site(site.path, tmp_path / "state"))
    site.write(POLICY_FILE, "[secure_aggregation]")
    state = tmp_path / "state"
    number = failure_id(asked(coordinator.train(), "train"), node_config(site, state))
    log = (state / "site.log").read_text()
    assert number in log
    assert "policy.toml: the run has no secure aggregation (secure_aggregation.required)" in log


def test_the_check_of_a_site_folder_reads_its_policy(site: SiteFolder) -> None:
    assert not check_site(site.path).problems
    site.write(POLICY_FILE, "[secure_aggregation]\nmin_cohrt = 4")
    (problem,) = check_site(site.path).problems
    assert problem.file == str(site / POLICY_FILE)
    site.edit("labs.csv", "350", "x")
    assert len(check_site(site.path).problems) == 2
