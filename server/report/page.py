"""``report.html`` of a finished run: one file that needs nothing else, the same bytes for the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flexmoe_core.checkpoint import write_atomic
from server.report import figures, protection, records, tables
from server.report.comparison import Comparison, load_comparison, save_comparison
from server.report.estimates import METRIC_TITLES, Evaluation, evaluate
from server.report.finished_run import FinishedRun, read_run
from server.report.theme import SITE_COLORS, site_looks
from server.run_store import PUBLIC_MODE

FILE = "report.html"
TEMPLATE = "page.html.j2"
MOST_ROWS_UNFOLDED = 15


@dataclass(frozen=True)
class Evaluations:
    """Test metrics of everybody, of each hospital and of each combination."""

    pooled: Evaluation
    sites: Mapping[str, Evaluation]
    combinations: Mapping[int | None, Evaluation]


def write_report(run_folder: Path, comparison: Comparison | None = None) -> Path:
    """Write ``report.html`` into a finished run's folder and give its path.

    A ``comparison`` is kept in the folder, and later pages show it again. Raises InputError, CheckpointError or
    MessageError where the folder holds no finished run.
    """
    run = read_run(run_folder)
    if comparison is None:
        comparison = load_comparison(run_folder)
    else:
        save_comparison(run_folder, comparison)
    path = run_folder / FILE
    write_atomic(path, render_page(run, comparison).encode(), PUBLIC_MODE)
    return path


def render_page(run: FinishedRun, comparison: Comparison | None) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(page_content(run, comparison))


def page_content(run: FinishedRun, comparison: Comparison | None) -> dict[str, Any]:
    """All that the template shows."""
    looks = site_looks(run.sites)
    found = evaluate_run(run)
    by_name = {records.combination_title(run, mask): one for mask, one in found.combinations.items()}
    classes = run.study.label.classes
    return {
        "run": run,
        "pooled": found.pooled,
        "figures": {
            "learning": figures.learning_figure(run, looks),
            "hospitals": figures.hospitals_figure(found.sites, found.pooled, looks),
            "combinations": figures.combinations_figure(run, found.combinations, found.pooled),
            "calibration": figures.calibration_figure(run, found.pooled),
            "coverage": figures.coverage_figure(run),
            "routing": figures.routing_figure(run),
            "differences": figures.differences_figure(comparison) if comparison else None,
        },
        "tables": {
            "hospitals": tables.results_table(
                "Test results by hospital", "Hospital", {"All hospitals": found.pooled, **found.sites}, classes, 1
            ),
            "combinations": tables.results_table("Test results by combination", "Combination", by_name, classes),
            "cohorts": records.cohort_table(run),
            "announced": records.combinations_table(run),
            "participation": records.participation_table(run),
            "rounds": records.rounds_table(run),
            "settings": records.settings_table(run.settings),
            "study": records.study_table(run),
            "provenance": records.provenance_table(run),
            "cost": protection.cost_table(run),
            "released": protection.released_table(run),
            "comparison": tables.comparison_table(comparison) if comparison else None,
            "differences": tables.differences_table(comparison) if comparison and comparison.differences else None,
        },
        "comparison": comparison,
        "headline": [
            _headline(run, "auroc", "Test AUROC", found.pooled),
            _headline(run, "accuracy", "Test accuracy", found.pooled),
        ],
        "calibration": {metric: tables.estimate_cell(found.pooled.estimates[metric]) for metric in ("ece", "brier")},
        "aggregated": sum(row.aggregated for row in run.history),
        "stages": records.stage_lengths(run),
        "has_experts": run.settings.method.model.routed_experts > 0,
        "bytes_up": records.size(sum(row.bytes_up for row in run.history)),
        "bytes_down": records.size(sum(row.bytes_down for row in run.history)),
        "time": records.duration(sum(row.seconds for row in run.history)),
        "validated": any(row.validation.pooled for row in run.history),
        "shares_color": len(run.sites) > len(SITE_COLORS),
        "most_rows": figures.MOST_ROWS,
        "most_rows_unfolded": MOST_ROWS_UNFOLDED,
    }


def evaluate_run(run: FinishedRun) -> Evaluations:
    """Every estimate of the page; the intervals' random numbers follow from the run's seed."""
    generator = np.random.default_rng(run.settings.seed)
    classes = run.study.label.classes
    few = f"no group of at least {run.settings.federation.min_cell} test patients"
    if run.settings.privacy.secure_aggregation is not None:
        few = "told to nobody: scores are summed under masks"
    pooled = evaluate(run.pooled(run.test), classes, generator, with_interval=METRIC_TITLES)
    sites = {}
    for site in run.sites:
        missing = run.facts.missing.get(site)
        none = "withheld under patient-level privacy" if run.withholds else few
        reason = none if missing is None else f"no final answer: {missing}"
        sites[site] = evaluate(run.site_scores(site), classes, generator, if_empty=reason)
    combinations = {mask: evaluate(cell.scores, classes, generator) for mask, cell in run.test_combinations.items()}
    return Evaluations(pooled, sites, combinations)


def _headline(run: FinishedRun, metric: str, title: str, pooled: Evaluation) -> dict[str, str]:
    if run.withholds:
        return protection.released_headline(run, metric, title)
    cell = tables.estimate_cell(pooled.estimates[metric])
    note = f"95% CI {cell.note}" if pooled.estimates[metric].interval else cell.note
    return {"title": title, "value": cell.text, "note": note}
