"""The page's figures: what each shows of a run, and in words for those who cannot see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from markupsafe import Markup

from server.report.calibration import reliability_diagrams
from server.report.comparison import POOLED, Comparison
from server.report.estimates import METRIC_TITLES, Estimate, Evaluation
from server.report.finished_run import FinishedRun
from server.report.forest import POOLED_LOOK, ForestRow, Panel, forest
from server.report.heat_map import HeatRow, heat_map
from server.report.learning import learning_curves, learning_panels
from server.report.records import combination_title
from server.report.tables import DASH, NOT_AVAILABLE, number
from server.report.theme import HEAT, Look

MOST_ROWS = 40
NO_MODALITY = ""
METRICS = ("auroc", "accuracy")
PANELS = (Panel("AUROC", 0.5, "chance is 0.5"), Panel("Accuracy"))
ALL = "all hospitals"


def learning_figure(run: FinishedRun, looks: Mapping[str, Look]) -> Markup | None:
    """Loss and validation curves; None where no round left any."""
    panels = learning_panels(run, looks)
    if not panels:
        return None
    told = [f"{panel.title}: {_ends(panel.curves[-1].points)} ({panel.curves[-1].name})" for panel in panels]
    alt = f"Learning curves over {len(run.history)} rounds, first to last value. " + ". ".join(told) + "."
    return learning_curves(run, panels, alt)


def hospitals_figure(evaluations: Mapping[str, Evaluation], pooled: Evaluation, looks: Mapping[str, Look]) -> Markup:
    """AUROC and accuracy per hospital, all hospitals first."""
    rows = [_forest_row(ALL, pooled, POOLED_LOOK)]
    rows += [_forest_row(site, one, looks[site]) for site, one in evaluations.items()]
    return forest("hospitals", _told("hospital", rows), rows, PANELS)


def combinations_figure(run: FinishedRun, evaluations: Mapping[int | None, Evaluation], pooled: Evaluation) -> Markup:
    """AUROC and accuracy per combination, those of most patients if there are too many."""
    rows = [_forest_row("all combinations", pooled, POOLED_LOOK)]
    chosen = _largest({mask: one.n for mask, one in evaluations.items()})
    for mask, one in evaluations.items():
        if mask in chosen:
            rows.append(_forest_row(combination_title(run, mask), one, Look(HEAT, "o"), mask))
    return forest("combinations", _told("combination", rows), rows, PANELS, run.study.modality_names)


def differences_figure(comparison: Comparison) -> Markup | None:
    """Paired differences with their intervals; None without any."""
    metrics = list(dict.fromkeys(one.metric for one in comparison.differences))
    if not metrics:
        return None
    reach = 1.05 * max(max(abs(one.low), abs(one.high), 0.02) for one in comparison.differences)
    panels = [Panel(_difference_title(metric), 0.0, "no difference", (-reach, reach)) for metric in metrics]
    patients = {row.site: row.n for row in comparison.rows}
    pairs = list(dict.fromkeys((one.site, one.baseline) for one in comparison.differences))
    rows = []
    for site, baseline in sorted(pairs, key=lambda pair: pair[0] != POOLED):
        found = {
            one.metric: Estimate(one.difference, (one.low, one.high))
            for one in comparison.differences
            if (one.site, one.baseline) == (site, baseline)
        }
        estimates = tuple(found.get(metric, Estimate(None, reason="not compared")) for metric in metrics)
        label = f"{ALL if site == POOLED else site}, vs. {baseline}"
        look = POOLED_LOOK if site == POOLED else Look(HEAT, "o")
        rows.append(ForestRow(label, patients.get(site, 0), look, estimates))
    alt = "Differences between methods on the same patients, with 95% intervals; the table has the same numbers."
    return forest("differences", alt, rows, panels)


def calibration_figure(run: FinishedRun, evaluation: Evaluation) -> Markup | None:
    """Reliability diagrams of all test patients; None without any."""
    scores = run.pooled(run.test)
    if not scores.n:
        return None
    ece, brier = (number(evaluation.estimates[metric].value) for metric in ("ece", "brier"))
    alt = f"Reliability diagrams of {scores.n} test patients: expected calibration error {ece}, Brier score {brier}."
    return reliability_diagrams(scores, run.study.label.classes[1], alt)


def coverage_figure(run: FinishedRun) -> Markup | None:
    """Share of each hospital's training patients who have each modality; None where nobody announced anything."""
    rows, told = [], []
    for site, reply in run.facts.participants.items():
        patients = reply.patients.get("train")
        cells: list[float | str] = []
        for modality in run.study.modality_names:
            observed = reply.observed.get(modality)
            if observed is not None and patients:
                cells.append(observed / patients)
            else:
                cells.append("few" if modality in reply.modalities else NO_MODALITY)
        rows.append(HeatRow(site, f"{patients:,}" if patients else DASH, tuple(cells)))
        has = [f"{name} {100 * cell:.0f}%" for name, cell in _named(run, cells)]
        told.append(f"{site}: {', '.join(has) or 'none in number'}")
    if not rows:
        return None
    alt = "Share of training patients who have each modality. " + "; ".join(told) + "."
    return heat_map("coverage", alt, rows, run.study.modality_names)


def routing_figure(run: FinishedRun) -> Markup | None:
    """Mean gate of each expert by combination of test patients; None without test patients or experts."""
    cells = {mask: cell for mask, cell in run.test_combinations.items() if cell.scores.n}
    experts = run.settings.method.model.routed_experts
    rows = []
    chosen = _largest({mask: cell.scores.n for mask, cell in cells.items()})
    for mask, cell in cells.items():
        if mask not in chosen:
            continue
        gates = tuple(float(gate) / cell.scores.n for gate in cell.gates_E)
        marked = None if mask is None else _own_expert(run, mask)
        rows.append(HeatRow(combination_title(run, mask), f"{cell.scores.n:,}", gates, mask, marked))
    if not rows or not experts:
        return None
    told = []
    for row in rows:
        share, expert = max((float(share), expert) for expert, share in enumerate(row.cells))
        told.append(f"{row.label}: most to expert {expert} ({100 * share:.0f}%)")
    alt = "Mean share of the gate that each expert gets, by combination. " + "; ".join(told) + "."
    return heat_map("routing", alt, rows, [f"expert {e}" for e in range(experts)], run.study.modality_names)


def _difference_title(metric: str) -> str:
    title = METRIC_TITLES.get(metric, metric)
    return f"Difference in {title if title.isupper() else title.lower()}"


def _named(run: FinishedRun, cells: Sequence[float | str]) -> list[tuple[str, float]]:
    pairs = zip(run.study.modality_names, cells, strict=True)
    return [(name, cell) for name, cell in pairs if not isinstance(cell, str)]


def _forest_row(label: str, evaluation: Evaluation, look: Look, mask: int | None = None) -> ForestRow:
    estimates = tuple(evaluation.estimates[metric] for metric in METRICS)
    return ForestRow(label, evaluation.n, look, estimates, mask)


def _told(what: str, rows: Sequence[ForestRow]) -> str:
    values = [f"{row.label} {_value(row.estimates[0])} and {_value(row.estimates[1])}" for row in rows]
    return f"AUROC and accuracy on test patients by {what}, with 95% intervals. " + "; ".join(values) + "."


def _value(estimate: Estimate) -> str:
    return NOT_AVAILABLE if estimate.value is None else number(estimate.value)


def _own_expert(run: FinishedRun, mask: int) -> int:
    """The combination's expert, or that of its nearest one where the table lacks it."""
    return int(run.table.place(torch.tensor([mask])).expert_B[0])


def _ends(points: Sequence[tuple[int, float]]) -> str:
    return f"{number(points[0][1])} to {number(points[-1][1])}"


def _largest(patients: Mapping[int | None, int]) -> set[int | None]:
    """The combinations of most patients; their order of display is kept by the caller."""
    return set(sorted(patients, key=lambda mask: -patients[mask])[:MOST_ROWS])
