from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flexmoe_core.errors import InputError, RunFailed
from simulations.audits import canary_command, presence_audit, shadows
from simulations.audits.canary_audit import CanaryResult, CanaryRun
from simulations.audits.commands import audit
from simulations.audits.data import halves
from simulations.audits.presence_audit import Guess, PresenceResult, PresenceRun, Question, Silence
from simulations.audits.shadows import Shadow, ShadowResult

RUNNER = CliRunner()
SMALL = ["--data", "synthetic", "--sites", "2", "--modalities", "3", "--patients-per-site", "30"]


def fake_shadow(shadow: Shadow) -> ShadowResult:
    """Members stand out a little, by an amount that a protection takes away."""
    patients = shadow.data.load(shadow.settings.seed).patients
    is_member = halves(patients, shadow.settings.seed, shadow.number)
    effect = 2.0 if shadow.settings.privacy.patient is None else 0.0
    logits = [(place * 7919 + shadow.number * 104729) % 1000 / 500 + effect * m for place, m in enumerate(is_member)]
    return ShadowResult(shadow=shadow, is_member=tuple(is_member.tolist()), logits=tuple(logits))


def fake_presence(run: PresenceRun) -> PresenceResult:
    questions = tuple(
        Question(site=site, combination=mask, patients=mask * place % 3, announced=False)
        for place, site in enumerate(("a", "b", "c", "d"))
        for mask in (1, 2, 3, 4)
    )
    guesses = tuple(
        Guess(view=view, attack=attack, round=6, scores=tuple(float(one.patients) for one in questions))
        for view in ("each site's update", "the sum alone")
        for attack in ("supports", "movement")
    )
    silences = (
        Silence(view="each site's update", site="a", round=6, rows=10, zero=3, absent=2, exposed=2),
        Silence(view="the sum alone", site="a", round=6, rows=10, zero=0, absent=2, exposed=0),
    )
    names = dict.fromkeys((1, 2, 3, 4), ("x",))
    return PresenceResult(run=run, combinations=names, questions=questions, guesses=guesses, silences=silences)


def fake_canary(run: CanaryRun) -> CanaryResult:
    scores = tuple(float(place % 2) for place in range(run.canaries))
    included = tuple(place % 2 == 1 for place in range(run.canaries))
    claimed, bound = (None if run.build == "no privacy" else run.epsilon), 0.5 if run.build == "shipped" else 4.0
    facts = {"noise_multiplier": 1.0, "claimed": claimed, "bound": bound, "guesses": 100, "correct": 60}
    return CanaryResult.model_validate({"run": run, **facts, "scores": scores, "included": included})


def test_membership_adds_a_protection_to_the_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shadows, "train_shadow", fake_shadow)
    command = ["membership", *SMALL, "--shadows", "8", "--out", str(tmp_path)]
    first = RUNNER.invoke(audit, command, catch_exceptions=False)
    assert first.exit_code == 0
    assert "patient DP" not in first.output
    protect = [
        "privacy.patient.epsilon=8",
        "method.losses.balance=0",
        "method.site.intercept=0",
        "method.site.regression=[]",
    ]
    sets = [part for change in protect for part in ("--set", change)]
    second = RUNNER.invoke(audit, [*command, *sets], catch_exceptions=False)
    assert second.exit_code == 0
    summary = (tmp_path / "audit.md").read_text()
    assert "| no protection " in summary
    assert "| patient DP, epsilon 8 " in summary
    assert "## By combination" in summary
    assert (tmp_path / "attacks_by_site.csv").exists()


def test_presence_shows_updates_and_their_sum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(presence_audit, "overhear", fake_presence)
    done = RUNNER.invoke(
        audit, ["presence", *SMALL, "--federations", "2", "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "secure aggregation" in done.output
    rows = (tmp_path / "zero_rows.csv").read_text().splitlines()
    assert rows[1:] == ["no protection,30 to 30%,4,4,1.0", "secure aggregation,0 to 0%,4,0,0.0"]


def test_presence_adds_updates_up_itself(tmp_path: Path) -> None:
    masked = ["--set", "privacy.secure_aggregation.threshold=3"]
    with pytest.raises(InputError, match="hides the updates that this audit adds up itself"):
        RUNNER.invoke(audit, ["presence", *SMALL, *masked, "--out", str(tmp_path)], catch_exceptions=False)


def test_canary_audits_what_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("simulations.audits.canary_audit.audit_run", fake_canary)
    command = ["canary", "--canaries", "200", "--out", str(tmp_path)]
    right = RUNNER.invoke(audit, [*command, "--runs", "2"], catch_exceptions=False)
    wrong = RUNNER.invoke(audit, [*command, "--broken", "noise", "--runs", "3"], catch_exceptions=False)
    assert (right.exit_code, wrong.exit_code) == (0, 0)
    assert "0 of 2" in right.output
    assert "broken: a fifth of the noise" in wrong.output
    assert "3 of 3" in wrong.output
    assert {"bounds.png", "roc.svg", "canaries.csv"} <= {file.name for file in tmp_path.iterdir()}


def test_a_refuted_claim_of_the_shipped_build_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuting(run: CanaryRun) -> CanaryResult:
        return fake_canary(run).model_copy(update={"bound": 3.0})

    monkeypatch.setattr("simulations.audits.canary_audit.audit_run", refuting)
    with pytest.raises(RunFailed, match=r"refute 1 of 1 claims of the shipped build: 2.00 \(at least 3.00\)"):
        RUNNER.invoke(
            audit,
            ["canary", "--epsilon", "2", "--no-plain", "--canaries", "100", "--out", str(tmp_path)],
            catch_exceptions=False,
        )
    assert (tmp_path / "audit.html").exists(), "what was found is there to be read"


def test_all_wrong_builds_at_once() -> None:
    assert canary_command._builds(canary_command.BrokenBuild.all) == ["noise", "tokens", "encoder"]
    assert canary_command._builds(None) == ["shipped"]


def test_help_names_every_audit() -> None:
    shown = RUNNER.invoke(audit, ["--help"]).output
    assert all(name in shown for name in ("membership", "presence", "canary"))
