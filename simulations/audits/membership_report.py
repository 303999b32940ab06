"""What the membership audit says: every attack on every protection, and whom it hits.

Shapes: K federations, B patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flexmoe_core.randomness import numpy_generator
from flexmoe_core.study import Study
from server.report.theme import SITE_COLORS, SITE_MARKERS, Look
from server.settings import RunSettings
from simulations.audits.data import AuditData
from simulations.audits.membership import ATTACKS, AttackScores, attack_all
from simulations.audits.plots import RocCurve, RocPanel, roc_drawing
from simulations.audits.protection import titles_of
from simulations.audits.report import NOT_AVAILABLE, AuditFigure, AuditReport, AuditTable, Finding, Value, text_of
from simulations.audits.roc import BoolArray, Separation, roc_of, separation
from simulations.audits.shadows import ShadowResult
from simulations.datasets.site_folders import PooledPatients

RATES = (0.1, 0.01, 0.001)
RATE_TITLES = tuple(f"TPR {100 * rate:g}%" for rate in RATES)
FEWEST_PATIENTS = 20
"""Combinations of fewer patients are reported together."""
GROUP_RESAMPLES = 400
SMALL = "smaller combinations"
SHOWN_BY_GROUP = ("loss", "LiRA online")
LIMITS = (
    "Attacks give lower bounds: that these find little does not show that no other finds more. Only differential "
    "privacy bounds them all.",
    "The attacker knows all patients but who of them took part, trains shadows of the same kind, and sees the "
    "released model alone. A coordinator who keeps the updates of sites sees more: see the audit of presence.",
    "Each federation is attacked with the help of the others, which share its patients: intervals resample patients, "
    "and say nothing of other federations than these.",
    "Members are a random half of each site's patients; a real run trains on more of them, and memorizes each less.",
)


@dataclass(frozen=True, eq=False)
class Attacked:
    """All federations of one protection: logits and membership (K, B)."""

    settings: RunSettings
    logits_KB: np.ndarray
    is_member_KB: BoolArray

    @property
    def federations(self) -> int:
        """How many there are."""
        return len(self.logits_KB)

    def scores(self) -> dict[str, AttackScores]:
        """By attack."""
        return {name: attack_all(attack, self.logits_KB, self.is_member_KB) for name, attack in ATTACKS.items()}


def attacked_of(results: Iterable[ShadowResult]) -> list[Attacked]:
    """Results of the same settings belong together; those with fewer than three federations are left out."""
    groups: dict[str, list[ShadowResult]] = {}
    for result in results:
        groups.setdefault(result.shadow.settings.model_dump_json(), []).append(result)
    return [
        Attacked(
            group[0].shadow.settings,
            np.array([one.logits for one in group]),
            np.array([one.is_member for one in group]),
        )
        for group in groups.values()
        if len(group) > 2
    ]


def membership_report(data: AuditData, pooled: PooledPatients, attacked: Sequence[Attacked]) -> AuditReport:
    """Tables and curves of at least one protection."""
    scores = {place: one.scores() for place, one in enumerate(attacked)}
    titles = titles_of([one.settings for one in attacked])
    overall = {
        (place, name): _separation(found, 1000, titles[place], name)
        for place, of_attack in scores.items()
        for name, found in of_attack.items()
    }
    rows = [(titles[place], name, *_cells(found)) for (place, name), found in overall.items()]
    tables = [
        AuditTable(
            "attacks",
            "Membership inference on the released model",
            ("protection", "attack", "members", "others", "AUC", *RATE_TITLES),
            tuple(rows),
            names=2,
            note="LiRA: likelihood ratio (Carlini et al. 2022). TPR x%: share of members recognized where x% of "
            "the others are taken for members; n/a where these are fewer than 10. Intervals: 95%, patients "
            "resampled.",
        )
    ]
    groups = {"site": _sites(pooled), "combination": _combinations(pooled)}
    for kind, of_group in groups.items():
        tables.append(_group_table(kind, of_group, scores, titles))
    return AuditReport(
        title=f"Membership inference: {data.dataset}",
        lead=_lead(data, pooled, attacked),
        findings=tuple(_findings(overall, titles)),
        tables=tuple(tables),
        figures=(_figure(scores, titles),),
        limits=LIMITS,
    )


def _separation(found: AttackScores, resamples: int, *names: str) -> Separation | None:
    generator = numpy_generator(0, "audit", *names)
    return separation(found.scores_N, found.is_member_N, found.patient_N, RATES, generator, resamples)


def _cells(found: Separation | None) -> tuple[Value, ...]:
    if found is None:
        return (0, 0, None, *(None for _ in RATES))
    return (found.members, found.non_members, found.auc, *found.at_rate)


def _sites(pooled: PooledPatients) -> dict[str, BoolArray]:
    of_site = pooled.patients["site"].to_numpy()
    return {str(site): of_site == site for site in dict.fromkeys(of_site)}


def _combinations(pooled: PooledPatients) -> dict[str, BoolArray]:
    """Patients by what they have, many first; small ones together."""
    study, observed = pooled.study, pooled.observed().to_numpy(dtype=bool)
    masks_B = observed @ (1 << np.arange(observed.shape[1], dtype=np.int64))
    counts = {int(mask): int((masks_B == mask).sum()) for mask in np.unique(masks_B)}
    named = sorted((mask for mask, count in counts.items() if count >= FEWEST_PATIENTS), key=lambda m: -counts[m])
    groups = {combination_title(study, mask): masks_B == mask for mask in named}
    small_B = ~np.isin(masks_B, named)
    return groups | ({SMALL: small_B} if small_B.any() else {})


def combination_title(study: Study, mask: int) -> str:
    """What is there, or what is missing where that is shorter."""
    present, absent = study.names_of(mask), study.names_of(study.full_mask & ~mask)
    if not absent:
        return "everything"
    return ", ".join(present) if len(present) <= len(absent) else f"all but {', '.join(absent)}"


def _group_table(
    kind: str,
    of_group: Mapping[str, BoolArray],
    scores: Mapping[int, Mapping[str, AttackScores]],
    titles: Sequence[str],
) -> AuditTable:
    rows: list[tuple[Value, ...]] = []
    for group, chosen_B in of_group.items():
        for place, of_attack in scores.items():
            for name in SHOWN_BY_GROUP:
                found = _separation(of_attack[name].only(chosen_B), GROUP_RESAMPLES, titles[place], name, group)
                auc = None if found is None else found.auc
                at_tenth = None if found is None else found.at_rate[0]
                rows.append((group, titles[place], name, int(chosen_B.sum()), auc, at_tenth))
    columns = (kind, "protection", "attack", "patients", "AUC", RATE_TITLES[0])
    return AuditTable(f"attacks_by_{kind}", f"By {kind}", columns, tuple(rows), names=3)


def _figure(scores: Mapping[int, Mapping[str, AttackScores]], titles: Sequence[str]) -> AuditFigure:
    looks = [Look(*look) for look in zip(SITE_COLORS, SITE_MARKERS, strict=True)]
    panels = []
    for place, of_attack in scores.items():
        curves = tuple(
            RocCurve(name, roc_of(found.scores_N, found.is_member_N), look)
            for (name, found), look in zip(of_attack.items(), looks, strict=False)
            if 0 < found.is_member_N.sum() < len(found.is_member_N)
        )
        panels.append(RocPanel(titles[place], curves))
    told = [f"{panel.title}: " + ", ".join(f"{c.label} {c.roc.auc:.2f}" for c in panel.curves) for panel in panels]
    alt = f"ROC curves of membership inference on logarithmic axes; areas: {'; '.join(told)}."
    caption = (
        "Both axes are logarithmic. What matters is the left side: members who are recognized while hardly anybody "
        "is suspected wrongly. A curve begins where ten non-members are false positives."
    )
    return AuditFigure("Who is recognized", caption, roc_drawing("roc", alt, panels))


def _findings(overall: Mapping[tuple[int, str], Separation | None], titles: Sequence[str]) -> Iterator[Finding]:
    for place, title in enumerate(titles):
        found = {name: one for (where, name), one in overall.items() if where == place and one is not None}
        if not found:
            continue
        name, strongest = max(found.items(), key=lambda item: item[1].auc.value or 0.0)
        at_hundredth = text_of(strongest.at_rate[1].value) if strongest.at_rate[1].value else NOT_AVAILABLE
        yield Finding(title, f"AUC {strongest.auc.value:.3f}", f"{name}; TPR at 1%: {at_hundredth}")


def _lead(data: AuditData, pooled: PooledPatients, attacked: Sequence[Attacked]) -> str:
    sites = pooled.patients["site"].nunique()
    return (
        f"{max(one.federations for one in attacked)} federations of {sites} hospitals ({data.dataset}, "
        f"{len(pooled.patients):,} patients), each trained on a random half of every hospital's patients. The "
        "attacker sees what every hospital and the coordinator have in the end, the released model, and says of each "
        "patient whether they took part. Each federation is attacked in turn, with the others as the attacker's "
        "shadows."
    )
