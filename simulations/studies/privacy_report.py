"""The study as one report: what was compared, its plots and tables, and what cannot be concluded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.report.theme import INK, SITE_COLORS, Look
from server.settings import RunSettings
from simulations.audits.report import AuditFigure, AuditReport, Finding, text_of
from simulations.audits.roc import Estimate
from simulations.studies import privacy_findings as of
from simulations.studies.epsilon_plots import EpsilonPanel, Reference, Series, epsilon_drawing
from simulations.studies.privacy_arms import PRESET, TITLES, Arm, Family, epsilon_text
from simulations.studies.privacy_findings import Findings, Measure
from simulations.studies.privacy_tables import tables_of

CURVES: tuple[tuple[Family, Family], ...] = (("patient", "none"), ("site", "none"), ("logistic", "logistic"))
"""Families with an epsilon, and what they are at infinity."""
POINTS: tuple[Family, ...] = ("secure-aggregation", "default")
LOOKS: dict[Family, Look] = {
    "patient": Look(SITE_COLORS[0], "o"),
    "site": Look(SITE_COLORS[1], "s"),
    "logistic": Look(SITE_COLORS[2], "^"),
    "secure-aggregation": Look(SITE_COLORS[3], "D"),
    "default": Look(INK, "v"),
}
UTILITY_PANELS: tuple[tuple[str, Measure], ...] = (
    ("AUROC", of.auroc),
    ("Accuracy", of.accuracy),
    ("Worst hospital's accuracy", of.worst_accuracy),
)
ATTACK_PANELS: tuple[tuple[str, Measure, float], ...] = (
    ("AUC of the attack", of.attack_auc, 0.5),
    ("Members found at 10% false alarms", of.attack_rate, 0.1),
)
LIMITS = (
    "The attack is the simplest one, against the released model alone: that it finds little does not show that "
    "others find no more. Only the guarantee bounds them all. Stronger attacks: flexmoe-sim audit.",
    "Epsilon of patients and of hospitals bound different things, and cannot be compared with one another: one hides "
    "whether a patient was in the data of a hospital, the other whether a hospital took part.",
    "Secure aggregation hides each hospital's update from the coordinator. It guarantees nothing about the model "
    "that comes out, which is why the attack finds as much as without it.",
    "Choices that were made by looking at the same patients (settings, features, ranges) are not in epsilon.",
    "Intervals are over seeds: initial weights, noise, who is held out, and of digits the split and what is missing. "
    "Where the test patients are the same for every seed, they say nothing of other patients.",
    "The non-private references learn from the held-out patients too, so that there is nobody to attack.",
)


def privacy_report(studied: Sequence[Findings]) -> AuditReport:
    """Of at least one data set."""
    seeds = len({seed for findings in studied for seed in findings.seeds})
    lead = (
        f"The same federation (preset {PRESET}) under patient-level privacy, under site-level privacy, with secure "
        "aggregation alone and without protection; beside it federated logistic regression by DP-SGD under the same "
        "accounting, and what one would take without privacy (own preset). "
        f"{' and '.join(findings.data.title for findings in studied)}; {_counted(seeds, 'seed')}"
        f"{_rounds(studied)}."
    )
    return AuditReport(
        title="What privacy costs, and what it buys",
        lead=lead,
        findings=tuple(_headline(studied[0])),
        tables=tuple(table for findings in studied for table in tables_of(findings)),
        figures=tuple(figure for findings in studied for figure in _figures(findings)),
        limits=LIMITS,
        kind="privacy and utility",
        stem="privacy",
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _rounds(studied: Sequence[Findings]) -> str:
    """Of the federations, if there are any."""
    trained = (result.job.training for findings in studied for result in findings.results)
    rounds = sorted({one.federation.rounds for one in trained if isinstance(one, RunSettings)})
    return "".join(f", {_counted(count, 'round')}" for count in rounds)


def _headline(findings: Findings) -> Iterator[Finding]:
    """AUROC without protection and at the largest epsilon, and what the attack finds."""
    largest = max(findings.epsilons, default=None)
    arms = [Arm(family="none"), Arm(family="patient", epsilon=largest), Arm(family="logistic", epsilon=largest)]
    for arm in arms:
        if arm in findings.arms:
            name = "Flex-MoE" if arm.family != "logistic" else "logistic regression"
            protected = f", epsilon {epsilon_text(arm.epsilon)}" if arm.epsilon else ", unprotected"
            attack = text_of(findings.estimate(arm, of.attack_auc).value)
            value = text_of(findings.estimate(arm, of.auroc).value)
            yield Finding(f"AUROC, {name}{protected}", value, f"{findings.data.title}; attack AUC {attack}")


def _figures(findings: Findings) -> Iterator[AuditFigure]:
    data, epsilons = findings.data, findings.epsilons
    name = f"{data.dataset}-utility-by-epsilon"
    panels = [_panel(findings, title, measure, _references(findings, measure)) for title, measure in UTILITY_PANELS]
    caption = (
        "Higher is better. Dots are means over seeds, lines 95% intervals; infinity is the same method without "
        "protection."
    )
    drawing = epsilon_drawing(name, _told(panels[0], data.title), epsilons, panels)
    yield AuditFigure(f"Utility: {data.title}", caption, drawing)
    name = f"{data.dataset}-attack-by-epsilon"
    panels = [
        _panel(findings, title, measure, (Reference("guessing", value),)) for title, measure, value in ATTACK_PANELS
    ]
    caption = (
        "Lower is better: a loss threshold on the released model tells training patients from those held out. On the "
        "dashed line it guesses."
    )
    drawing = epsilon_drawing(name, _told(panels[0], data.title), epsilons, panels)
    yield AuditFigure(f"What an attack finds: {data.title}", caption, drawing)


def _panel(findings: Findings, title: str, measure: Measure, references: tuple[Reference, ...]) -> EpsilonPanel:
    series = []
    for family, at_infinity in CURVES:
        arms = [Arm(family=family, epsilon=epsilon) for epsilon in findings.epsilons] + [Arm(family=at_infinity)]
        series.append((family, arms))
    series += [(family, [Arm(family=family)]) for family in POINTS]
    return EpsilonPanel(
        title,
        tuple(
            Series(
                TITLES[family],
                LOOKS[family],
                tuple((arm.epsilon, findings.estimate(arm, measure)) for arm in arms if arm in findings.arms),
            )
            for family, arms in series
        ),
        references,
    )


def _references(findings: Findings, measure: Measure) -> tuple[Reference, ...]:
    simple: tuple[Family, ...] = ("pooled-logistic", "majority")
    return tuple(Reference(TITLES[family], findings.estimate(Arm(family=family), measure).value) for family in simple)


def _told(panel: EpsilonPanel, title: str) -> str:
    """In words for those who cannot see it."""
    told = []
    for series in panel.series:
        values = [f"{_value(estimate)} at epsilon {_epsilon(epsilon)}" for epsilon, estimate in series.estimates]
        told.append(f"{series.label}: {', '.join(values) or 'not run'}")
    return f"{panel.title} by epsilon, {title}. {'; '.join(told)}. The tables have all numbers."


def _value(estimate: Estimate) -> str:
    return text_of(estimate.value)


def _epsilon(epsilon: float | None) -> str:
    return "infinity" if epsilon is None else epsilon_text(epsilon)
