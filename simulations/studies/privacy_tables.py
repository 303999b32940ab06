"""The tables of the study: what is left of the model, what protects patients, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable

from simulations.audits.report import AuditTable, Value
from simulations.studies import privacy_findings as of
from simulations.studies.privacy_arms import TITLES, Arm, epsilon_text
from simulations.studies.privacy_findings import Findings, Measure

UTILITY: tuple[tuple[str, Measure], ...] = (
    ("AUROC", of.auroc),
    ("Accuracy", of.accuracy),
    ("Worst AUROC", of.worst_auroc),
    ("Worst accuracy", of.worst_accuracy),
)
NAMES = ("Method", "Epsilon")
PRICED = tuple(column for column in UTILITY if column[0] != "Worst AUROC")
"""Without the measure that half of the hospitals lack: a terminal has 80 columns."""
PRIVACY = (*NAMES, "Attack AUC", "Attack TPR 10%", "Spent", "Delta")
COST = (*NAMES, "Seconds", "KB up", "KB down")


def tables_of(findings: Findings) -> list[AuditTable]:
    """Four tables of one data set, of which every one has the private logistic regression."""
    return [_utility(findings), _price(findings), _privacy(findings), _cost(findings)]


def _utility(findings: Findings) -> AuditTable:
    rows: list[tuple[Value, ...]] = [
        (*_names(arm), *(findings.estimate(arm, measure) for _, measure in UTILITY)) for arm in findings.arms
    ]
    note = (
        "Mean over seeds [95% interval, of at least three]. AUROC and accuracy: test patients of all hospitals "
        "together. Worst: of the hospital with the lowest, for AUROC among those with 10 test patients of each class."
    )
    return _table(findings, "utility", "Utility", (*NAMES, *(title for title, _ in UTILITY)), rows, note)


def _price(findings: Findings) -> AuditTable:
    rows: list[tuple[Value, ...]] = []
    for arm in findings.arms:
        for title, other in _compared(arm, findings.arms):
            differences = [findings.difference(arm, other, measure) for _, measure in PRICED]
            rows.append((*_names(arm), title, *differences))
    columns = (*NAMES, "Minus", *(title for title, _ in PRICED))
    note = "Mean difference over seeds [95% interval]: both have the same patients, split and seed."
    return _table(findings, "price", "What protection costs in utility", columns, rows, note, names=3)


def _privacy(findings: Findings) -> AuditTable:
    rows = [
        (
            *_names(arm),
            findings.estimate(arm, of.attack_auc),
            findings.estimate(arm, of.attack_rate),
            findings.estimate(arm, of.spent).value,
            _delta(findings, arm),
        )
        for arm in findings.arms
        if arm.family not in ("pooled-logistic", "majority")
    ]
    sides = next((one.membership for one in findings.results if one.membership), None)
    note = (
        "Attack: a loss threshold on the released model tells training patients from those held out, who were drawn "
        "by hospital and label like them; AUC 0.5 and TPR 0.1 are guessing. Spent: epsilon by the records of the "
        "site that spent most, at this delta; n/a: nothing is guaranteed."
    )
    if sides:
        note += f" {sides.members} training patients, {sides.non_members} held out."
    return _table(findings, "privacy", "Attack and guarantee", PRIVACY, rows, note)


def _cost(findings: Findings) -> AuditTable:
    measures = (of.seconds, of.kilobytes_up, of.kilobytes_down)
    rows = [(*_names(arm), *(_plain(findings, arm, measure) for measure in measures)) for arm in findings.arms]
    note = (
        "Means over seeds. Seconds of the whole training of all sites on one machine, the search for the noise "
        "included; kilobytes (1,000 bytes) of one site and round."
    )
    return _table(findings, "cost", "Time and bytes", COST, rows, note)


def _table(
    findings: Findings,
    name: str,
    title: str,
    columns: tuple[str, ...],
    rows: Iterable[tuple[Value, ...]],
    note: str,
    names: int = 2,
) -> AuditTable:
    data = findings.data
    return AuditTable(
        f"{data.dataset}-{name}", f"{title}: {data.title}", columns, tuple(rows), names=names, note=note
    )


def _names(arm: Arm) -> tuple[str, str]:
    return TITLES[arm.family], epsilon_text(arm.epsilon)


def _compared(arm: Arm, arms: tuple[Arm, ...]) -> list[tuple[str, Arm]]:
    """What an arm's utility is taken against: itself without protection, and regression at the same epsilon."""
    against = []
    if arm.unprotected in arms and (arm.epsilon is not None or arm.family == "secure-aggregation"):
        against.append(("unprotected", arm.unprotected))
    regression = Arm(family="logistic", epsilon=arm.epsilon)
    if regression in arms and arm.family in ("patient", "none"):
        against.append(("logistic regression", regression))
    return against


def _delta(findings: Findings, arm: Arm) -> Value:
    deltas = {result.delta for result in findings.of(arm).values()}
    found = next(iter(deltas)) if len(deltas) == 1 else None
    return None if found is None else f"{found:g}"


def _plain(findings: Findings, arm: Arm, measure: Measure) -> Value:
    """The mean without an interval, to one digit after the point."""
    value = findings.estimate(arm, measure).value
    return None if value is None else f"{value:,.1f}"
