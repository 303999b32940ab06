"""What the presence audit says: how surely combinations are guessed, and which rows are exactly zero.

Shapes: Q questions of one federation, N scores of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flexmoe_core.randomness import numpy_generator
from flexmoe_core.scores import FloatArray
from server.report.theme import SITE_COLORS, SITE_MARKERS, Look
from simulations.audits.coordinator_view import PLAIN, SUMMED
from simulations.audits.plots import RocCurve, RocPanel, roc_drawing
from simulations.audits.presence import ATTACKS
from simulations.audits.presence_audit import PresenceResult, Question
from simulations.audits.protection import NONE, titles_of
from simulations.audits.report import AuditFigure, AuditReport, AuditTable, Finding, Value, text_of
from simulations.audits.roc import BoolArray, Separation, roc_of, separation

VIEWS = (PLAIN, SUMMED)
SECURE = "secure aggregation"
LIMITS = (
    "Two attacks of many: that they find little does not show that no other finds more.",
    "Questions are only asked where the declared modalities leave the answer open, and not of patients with "
    "everything, whom sites declare: guessing from public facts is an AUC of 0.5.",
    "The sum is what secure aggregation reveals at most, when all sites answer: rows of too few sites are held back. "
    "It does not hide what all of them lack, and sums over different sites can be compared.",
    "The study lists the combinations of all its patients. Unless privacy.patient forbids it, the handshake "
    "announces those of at least min_cell patients anyway.",
)


@dataclass(frozen=True)
class Protected:
    """The federations of one protection, as one view shows them."""

    results: tuple[PresenceResult, ...]
    view: str
    title: str

    def guesses(self, attack: str) -> FloatArray:
        """(N,) scores, each the mean of all attacked rounds: the coordinator sees every one."""
        means = []
        for result in self.results:
            found = [one.scores for one in result.guesses if (one.view, one.attack) == (self.view, attack)]
            means.append(np.mean(found, axis=0) if found else np.full(len(result.questions), np.nan))
        return np.concatenate(means)

    @property
    def questions(self) -> list[Question]:
        """The questions (N,) that the scores belong to."""
        return [question for result in self.results for question in result.questions]

    def separation(self, attack: str, unannounced: bool) -> Separation | None:
        """How well an attack does on all questions, or on those that the handshake leaves open."""
        scores_N, asked = self.guesses(attack), self.questions
        chosen_N = ~np.isnan(scores_N) & np.array(
            [not (unannounced and one.announced) for one in asked], dtype=np.bool_
        )
        pairs: dict[tuple[str, int], int] = {}
        pair_N = np.array([pairs.setdefault((one.site, one.combination), len(pairs)) for one in asked])
        generator = numpy_generator(0, "audit", self.title, attack)
        return separation(scores_N[chosen_N], self.present_N[chosen_N], pair_N[chosen_N], (), generator)

    @property
    def present_N(self) -> BoolArray:
        """Whether the site has such patients."""
        return np.array([one.patients > 0 for one in self.questions], dtype=np.bool_)

    def count_error(self, unannounced: bool) -> float | None:
        """Mean error of the guessed numbers of patients; None where they cannot be meant of one site."""
        chosen_N = np.array([not (unannounced and one.announced) for one in self.questions], dtype=np.bool_)
        if self.view != PLAIN or not chosen_N.any():
            return None
        patients_N = np.array([one.patients for one in self.questions])
        return float(np.abs(self.guesses("supports") - patients_N)[chosen_N].mean())


def protected_of(results: Sequence[PresenceResult]) -> list[Protected]:
    """Federations that differ in their seed alone belong together; each protection in both views."""
    groups: dict[str, list[PresenceResult]] = {}
    for result in results:
        unseeded = result.run.settings.model_copy(update={"seed": 0})
        groups.setdefault(unseeded.model_dump_json(), []).append(result)
    titles = titles_of([group[0].run.settings for group in groups.values()])
    return [
        Protected(tuple(group), view, _title(title, view))
        for group, title in zip(groups.values(), titles, strict=True)
        for view in VIEWS
    ]


def _title(protection: str, view: str) -> str:
    """The protection, and what else it lets the coordinator see."""
    if view == SUMMED:
        return protection.replace(NONE, SECURE) if protection.startswith(NONE) else f"{protection}, {SECURE}"
    return protection


def presence_report(protections: Sequence[Protected]) -> AuditReport:
    """Tables and curves of at least one protection."""
    first = protections[0]
    asked, sites = first.questions, len({one.site for one in first.questions})
    lead = (
        f"{len(first.results)} federations of {sites} hospitals. For each hospital and combination that its declared "
        f"modalities allow ({len(asked)} pairs in all, {int(first.present_N.sum())} of them with patients), the "
        "attacker guesses from the updates of single rounds whether the hospital has such patients."
    )
    return AuditReport(
        title=f"Presence of combinations: {first.results[0].run.data.dataset}",
        lead=lead,
        findings=tuple(_findings(protections)),
        tables=(_attack_table(protections), _zero_table(protections)),
        figures=(_figure(protections),),
        limits=LIMITS,
    )


def _attack_table(protections: Sequence[Protected]) -> AuditTable:
    rows: list[tuple[Value, ...]] = []
    for one in protections:
        for attack in ATTACKS:
            for unannounced in (False, True):
                found = one.separation(attack, unannounced)
                name = f"{attack}, {'not announced' if unannounced else 'all'}"
                counts = (0, 0) if found is None else (found.members, found.non_members)
                error = one.count_error(unannounced) if attack == "supports" else None
                rows.append((one.title, name, *counts, None if found is None else found.auc, error))
    return AuditTable(
        "presence",
        "Does a hospital have patients of a combination?",
        ("protection", "attack", "present", "absent", "AUC", "count off by"),
        tuple(rows),
        names=2,
        note="Supports: the patients per combination that explain an update's supports best. Movement: how far its "
        "bank rows moved. Not announced: fewer than min_cell patients. Count off by: mean error of the guessed "
        "number of patients. Intervals: 95%, pairs of hospital and combination resampled.",
    )


def _zero_table(protections: Sequence[Protected]) -> AuditTable:
    rows: list[tuple[Value, ...]] = []
    for protected in protections:
        found = [one for result in protected.results for one in result.silences if one.view == protected.view]
        shares = [100 * one.zero / one.rows for one in found if one.rows]
        absent, exposed = sum(one.absent for one in found), sum(one.exposed for one in found)
        zero = f"{min(shares):.0f} to {max(shares):.0f}%" if shares else None
        rows.append((protected.title, zero, absent, exposed, exposed / absent if absent else None))
    return AuditTable(
        "zero_rows",
        "Rows that are exactly zero",
        ("protection", "zero rows", "absent", "exposed", "share"),
        tuple(rows),
        note="Zero rows: of those that carry a weight of their own (experts, routers, bank), fewest to most of any "
        "site and round. Absent: combinations that a site could have and has not, counted once per round. Exposed: "
        "those that a zero row gives away, with certainty.",
    )


def _figure(protections: Sequence[Protected]) -> AuditFigure:
    looks = [Look(*look) for look in zip(SITE_COLORS, SITE_MARKERS, strict=True)]
    panels = []
    for one in protections:
        curves = []
        for attack, look in zip(ATTACKS, looks, strict=False):
            scores_N = one.guesses(attack)
            said_N = ~np.isnan(scores_N)
            if 0 < one.present_N[said_N].sum() < said_N.sum():
                curves.append(RocCurve(attack, roc_of(scores_N[said_N], one.present_N[said_N]), look))
        if curves:
            panels.append(RocPanel(one.title, tuple(curves)))
    told = [f"{panel.title}: " + ", ".join(f"{c.label} {c.roc.auc:.2f}" for c in panel.curves) for panel in panels]
    alt = f"ROC curves of the presence attack on logarithmic axes; areas: {'; '.join(told)}."
    caption = (
        "True positives are pairs of a hospital and a combination that it has; false positives are pairs that do not "
        "exist. A curve begins at ten false positives."
    )
    axes = ("false positives, share of absent pairs", "true positives, share of present pairs")
    return AuditFigure("What updates give away", caption, roc_drawing("roc", alt, panels, axes))


def _findings(protections: Sequence[Protected]) -> Iterator[Finding]:
    for one in protections:
        found = {attack: one.separation(attack, unannounced=True) for attack in ATTACKS}
        known = {attack: sep.auc.value for attack, sep in found.items() if sep is not None and sep.auc.value}
        if known:
            attack, auc = max(known.items(), key=lambda item: item[1])
            yield Finding(one.title, f"AUC {text_of(auc)}", f"{attack}; not announced combinations")
