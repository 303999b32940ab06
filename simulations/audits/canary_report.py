"""What the canary audit says: of each build and setting, what is claimed and what is proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from server.report.theme import SITE_COLORS, SITE_MARKERS, Look
from simulations.audits.builds import BUILDS, PLAIN, SHIPPED
from simulations.audits.canary_audit import CanaryResult, Schedule
from simulations.audits.canary_plot import bounds_drawing
from simulations.audits.one_run import clopper_pearson
from simulations.audits.plots import Limit, RocCurve, RocPanel, roc_drawing
from simulations.audits.report import AuditFigure, AuditReport, AuditTable, Finding, Value
from simulations.audits.roc import Roc, roc_of

TITLES = {
    SHIPPED: "the shipped build",
    PLAIN: "no privacy",
    "noise": "broken: a fifth of the noise",
    "tokens": "broken: clips tokens",
    "encoder": "broken: encoders left out",
}
SHORT_TITLES = {build: title.removeprefix("broken: ") for build, title in TITLES.items()}
MOST_PANELS = 6
LIMITS = (
    "A lower bound shows that epsilon is not smaller. It never shows that a claim is right: that is what the proof, "
    "the accountant and the tests of the engine are for. A thousand canaries can prove 4.7 at most.",
    "The auditor chooses the patients, sees every parameter after every step, local encoders included, and knows "
    "all but the coins and the noise: more than any participant.",
    "Plain steps (SGD) are audited, on one hospital and on generated patients. Other optimizers use the same noised "
    "sums; adaptive clipping and the release of metrics are not audited here.",
    "Each bound holds with 99% confidence: of a hundred right builds, one may be refuted by chance.",
)


@dataclass(frozen=True)
class Setting:
    """What runs have in common that are reported together."""

    build: str
    epsilon: float
    schedule: Schedule
    size: str

    @classmethod
    def of(cls, result: CanaryResult) -> Setting:
        """A run's own."""
        run = result.run
        return cls(run.build, run.epsilon, run.schedule, run.size)

    @property
    def title(self) -> str:
        """Beside the build."""
        return f"{self.schedule.title}{', paper' if self.size == 'paper' else ''}"


def canary_report(results: Sequence[CanaryResult]) -> AuditReport:
    """Tables and plots of at least one run."""
    groups: dict[Setting, list[CanaryResult]] = {}
    order = {build: place for place, build in enumerate(BUILDS)}
    for result in sorted(results, key=lambda one: (order[one.run.build], one.run.schedule.rounds, one.run.epsilon)):
        groups.setdefault(Setting.of(result), []).append(result)
    runs = [one.run for one in results]
    lead = (
        f"{min(run.canaries for run in runs):,} canaries, patients whose gradients have a direction of their own, "
        "are let in or left out by a coin. The auditor sees all parameters after every step, measures how far they "
        "went in each canary's direction, guesses of the highest and lowest who was in, and refutes every epsilon "
        "under which so many guesses would hardly be right (Steinke, Nasr and Jagielski 2023)."
    )
    return AuditReport(
        title="Canaries: what DP-SGD claims, and what can be proven",
        lead=lead,
        findings=tuple(_findings(groups)),
        tables=(_table(groups),),
        figures=tuple(_figures(groups)),
        limits=LIMITS,
    )


def _table(groups: dict[Setting, list[CanaryResult]]) -> AuditTable:
    rows: list[tuple[Value, ...]] = []
    for setting, results in groups.items():
        bounds, last = [one.bound for one in results], results[-1]
        caught = sum(one.is_caught for one in results)
        low, high = clopper_pearson(caught, len(results))
        share = None if last.claimed is None else f"{low:.2f} to {high:.2f}"
        noise = None if setting.build == PLAIN else last.noise_multiplier
        refuted = None if last.claimed is None else f"{caught} of {len(results)}"
        rows.append(
            (TITLES[setting.build], setting.title, last.claimed, noise, median(bounds), max(bounds), refuted, share)
        )
    columns = ("build", "schedule", "claimed", "noise", "proven", "highest", "refuted", "interval")
    return AuditTable(
        "canaries",
        "Epsilon: claimed and proven",
        columns,
        tuple(rows),
        names=2,
        note=f"Delta {groups[next(iter(groups))][0].run.delta:g}. Claimed: the ledger's epsilon of the steps. Noise: "
        "the claimed multiplier. Proven: lower bound at 99% confidence, median and highest of the runs. Refuted: "
        "runs in which it is above the claim, and the exact 95% interval of their share (Clopper and Pearson 1934).",
    )


def _findings(groups: dict[Setting, list[CanaryResult]]) -> Iterator[Finding]:
    for build, title in TITLES.items():
        results = [one for setting, of_setting in groups.items() for one in of_setting if setting.build == build]
        if not results:
            continue
        if build == PLAIN:
            yield Finding(title, f"{min(one.bound for one in results):.2f}", "proven epsilon, lowest of the runs")
            continue
        caught = sum(one.is_caught for one in results)
        yield Finding(title, f"{caught} of {len(results)}", "runs whose claim is refuted")


def _figures(groups: dict[Setting, list[CanaryResult]]) -> Iterator[AuditFigure]:
    looks = {
        build: Look(*look) for build, look in zip(BUILDS, zip(SITE_COLORS, SITE_MARKERS, strict=True), strict=False)
    }
    points: dict[str, list[tuple[float, float]]] = {}
    for setting, results in groups.items():
        for one in results:
            points.setdefault(setting.build, []).append((setting.epsilon, one.bound))
    titled = {TITLES[build]: of_build for build, of_build in points.items()}
    told = "; ".join(f"{title}: highest {max(bound for _, bound in found):.2f}" for title, found in titled.items())
    yield AuditFigure(
        "What is proven against what is claimed",
        "One point per run. A build whose points are above the line claims less than it gives away. Without privacy "
        "nothing is claimed: these points stand where the same settings would claim.",
        bounds_drawing(
            "bounds",
            f"Proven against claimed epsilon. {told}.",
            titled,
            {TITLES[build]: look for build, look in looks.items()},
        ),
    )
    panels = _panels(groups, looks)[:MOST_PANELS]
    told = "; ".join(f"{one.title}: " + ", ".join(f"{c.label} {c.roc.auc:.2f}" for c in one.curves) for one in panels)
    alt = f"ROC curves of canaries on logarithmic axes; areas: {told}."
    caption = (
        "Canaries that were in against those that were not, all runs of a setting together. Under the claim, no "
        "curve about one patient can be above the upper line. Without privacy every canary is recognized."
    )
    axes = ("false positives, share of canaries left out", "true positives, share of canaries let in")
    yield AuditFigure("Which canaries are recognized", caption, roc_drawing("roc", alt, panels, axes))


def _panels(groups: Mapping[Setting, Sequence[CanaryResult]], looks: Mapping[str, Look]) -> list[RocPanel]:
    """One for each claim and schedule, its builds together; those of most builds first."""
    claims: dict[tuple[float, str], list[Setting]] = {}
    for setting in groups:
        claims.setdefault((setting.epsilon, setting.title), []).append(setting)
    panels = []
    for (epsilon, title), settings in sorted(claims.items(), key=lambda item: -len(item[1])):
        curves = [
            RocCurve(SHORT_TITLES[setting.build], _roc_of(groups[setting]), looks[setting.build])
            for setting in settings
        ]
        claimed = next((one.claimed for setting in settings for one in groups[setting] if one.claimed), None)
        limit = None if claimed is None else Limit(claimed, groups[settings[0]][0].run.delta)
        panels.append(RocPanel(f"epsilon {epsilon:g}, {title}", tuple(curves), limit))
    return panels


def _roc_of(results: Sequence[CanaryResult]) -> Roc:
    scores = np.concatenate([one.scores for one in results])
    return roc_of(scores, np.concatenate([one.included for one in results]).astype(np.bool_))
