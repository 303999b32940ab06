"""The federated model and what a user would pick instead, on the same test patients, patient by patient.

Shapes: B patients, Y classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flexmoe_core.errors import CheckpointError
from flexmoe_core.intervals import auroc_of, paired_bootstrap_difference
from flexmoe_core.randomness import numpy_generator
from flexmoe_core.score_metrics import MINIMUM_CLASS_COUNT, summary
from flexmoe_core.scores import IntArray, Scores, probability_edges
from flexmoe_core.validation import FrozenModel
from server.report.comparison import POOLED, Comparison, ComparisonRow, Measures, PairedDifference
from server.run_store import RunStore
from simulations.baselines.local_only import local_only
from simulations.baselines.logistic import pooled_logistic
from simulations.baselines.majority import majority_class
from simulations.baselines.predictions import Predictions, SitePredictions, bundle_predictions, pooled, read_sites
from simulations.runs import site_bundle, site_folders

FEDERATED = "federated Flex-MoE"
LOCAL = "local only"
POOLED_LOGISTIC = "pooled logistic regression"
MAJORITY = "majority class"
METHODS = (FEDERATED, LOCAL, POOLED_LOGISTIC, MAJORITY)
NOTE = (
    "Local only: the better of the same network and logistic regression, trained at each hospital alone. Pooled "
    "logistic regression sees all hospitals' patients in one place, which they cannot have. Both are tuned by "
    "cross-validation and then learn from training and validation patients; the shared model learns from training "
    "patients only, what each hospital adds to it from both. Majority class: each hospital's share of the classes."
)
Metric = Literal["accuracy", "auroc"]
METRICS: tuple[Metric, ...] = ("accuracy", "auroc")
Predicted = npt.NDArray[Any]


class Result(FrozenModel):
    """One method's test patients and metrics at a hospital, or at all of them together (``site`` None)."""

    site: str | None
    method: str
    n: int
    n_positive: int | None
    accuracy: float | None
    macro_f1: float | None
    auroc: float | None
    auprc: float | None
    brier: float | None
    ece: float | None


class Difference(FrozenModel):
    """A metric of the federated model minus that of ``method``, with its 95% interval over patients."""

    site: str | None
    method: str
    metric: Metric
    difference: float
    low: float
    high: float


class ComparisonTable(FrozenModel):
    """Every method at every hospital and pooled, and paired differences where both classes have enough patients.

    ``chosen`` is what each hospital chose for itself.
    """

    results: tuple[Result, ...]
    differences: tuple[Difference, ...]
    chosen: dict[str, str]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, the federated one first."""
        return tuple(dict.fromkeys(result.method for result in self.results))

    @property
    def sites(self) -> tuple[str | None, ...]:
        """None for all patients, then the hospitals."""
        return tuple(dict.fromkeys(result.site for result in self.results))

    def result(self, site: str | None, method: str) -> Result:
        """One method at one hospital or (None) pooled; raises KeyError where there is none."""
        return {(one.site, one.method): one for one in self.results}[site, method]

    def difference(self, site: str | None, method: str, metric: Metric) -> Difference | None:
        """The federated model against one method; None where the hospital has too few patients of a class."""
        found = {(one.site, one.method, one.metric): one for one in self.differences}
        return found.get((site, method, metric))

    def to_report(self) -> Comparison:
        """The same for the report of the run."""
        return Comparison(
            methods=self.methods,
            rows=tuple(self._report_row(site) for site in self.sites),
            note=NOTE,
            differences=tuple(
                PairedDifference(
                    site=one.site or POOLED,
                    method=self.methods[0],
                    baseline=one.method,
                    metric=one.metric,
                    difference=one.difference,
                    low=one.low,
                    high=one.high,
                )
                for one in self.differences
            ),
        )

    def _report_row(self, site: str | None) -> ComparisonRow:
        of_method = {method: self.result(site, method) for method in self.methods}
        first = of_method[self.methods[0]]
        measures = {method: Measures(one.accuracy, one.auroc) for method, one in of_method.items()}
        return ComparisonRow(site or POOLED, first.n, first.n_positive, measures)


def compare(
    study_folder: Path, store: RunStore, seed: int, *, processes: int | None = None, resamples: int = 1000
) -> ComparisonTable:
    """Train the baselines and predict every test patient of the hospitals that ended the run with a bundle.

    ``seed`` draws folds and resamples. ``processes`` trains networks of single hospitals beside each other (None:
    one per CPU; 0: in this process). Raises InputError and CheckpointError.
    """
    folders = {
        name: folder for name, folder in site_folders(study_folder).items() if site_bundle(store, name).is_dir()
    }
    if not folders:
        raise CheckpointError(f"{store.folder}: no hospital ended this run with a bundle to predict with")
    study, settings = store.study, store.settings
    sites = read_sites(folders, study)
    federated = {name: bundle_predictions(site_bundle(store, name), data) for name, data in sites.items()}
    workers = (os.cpu_count() or 1) if processes is None else processes
    local = local_only(study, folders, sites, settings.model_copy(update={"seed": seed}), workers)
    methods = {
        FEDERATED: federated,
        LOCAL: local.predictions,
        POOLED_LOGISTIC: pooled_logistic(study, sites, seed),
        MAJORITY: majority_class(study, sites),
    }
    return compare_predictions(methods, len(study.label.classes), dict(local.chosen), seed, resamples)


def compare_predictions(
    methods: Mapping[str, Predictions], classes: int, chosen: Mapping[str, str], seed: int, resamples: int
) -> ComparisonTable:
    """Metrics of every method, and the paired differences of the first one to the others."""
    first, *others = methods
    sites = tuple(methods[first])
    strata = np.repeat(np.arange(len(sites)), [len(methods[first][site].labels_B) for site in sites])
    results, differences = [], []
    for site in (None, *sites):
        of_method = {
            method: pooled(predictions) if site is None else predictions[site]
            for method, predictions in methods.items()
        }
        for method, predicted in of_method.items():
            results.append(result_of(site, method, predicted))
        if not _has_enough(of_method[first].labels_B, classes):
            continue
        for other in others:
            generator = numpy_generator(seed, "difference", site or POOLED, other)
            pair = of_method[first], of_method[other]
            for metric, low_to_high in _differences(*pair, strata if site is None else None, generator, resamples):
                difference, low, high = low_to_high
                differences.append(
                    Difference(site=site, method=other, metric=metric, difference=difference, low=low, high=high)
                )
    return ComparisonTable(results=tuple(results), differences=tuple(differences), chosen=dict(chosen))


def result_of(site: str | None, method: str, predicted: SitePredictions) -> Result:
    """The metrics of one method's predictions."""
    metrics = summary(Scores.of(predicted.probabilities_BY, predicted.labels_B))
    known = {name: value for name, value in metrics.items() if name in Result.model_fields}
    return Result.model_validate({"site": site, "method": method, **known})


def _differences(
    a: SitePredictions,
    b: SitePredictions,
    strata_B: IntArray | None,
    generator: np.random.Generator,
    resamples: int,
) -> Iterator[tuple[Metric, tuple[float, float, float]]]:
    """Of each metric: the difference and its interval, patients resampled within the strata."""
    for metric in METRICS:
        compute, prepare = (_mean, _correct) if metric == "accuracy" else (_auroc, _bins)
        found = paired_bootstrap_difference(
            compute, prepare(a), prepare(b), a.labels_B, generator, resamples=resamples, strata_B=strata_B
        )
        if found is not None:
            yield metric, found


def _has_enough(labels_B: IntArray, classes: int) -> bool:
    """As for AUROC: enough patients in each class and outside it."""
    counts_Y = np.bincount(labels_B, minlength=classes)
    return bool(np.minimum(counts_Y, len(labels_B) - counts_Y).min() >= MINIMUM_CLASS_COUNT)


def _correct(predicted: SitePredictions) -> Predicted:
    """(B,) bool, by the rule of ``Scores``."""
    p_BY = predicted.probabilities_BY
    classes_B = (p_BY[:, 1] >= 0.5).astype(np.int64) if p_BY.shape[1] == 2 else p_BY.argmax(axis=1)
    return np.asarray(classes_B == predicted.labels_B)


def _bins(predicted: SitePredictions) -> Predicted:
    """(B, Y) or, of two classes, (B, 1): probability bins, by which the AUROC of ``Scores`` ranks."""
    p_BY = predicted.probabilities_BY
    return np.searchsorted(probability_edges(), p_BY[:, 1:] if p_BY.shape[1] == 2 else p_BY, side="right")


def _mean(correct_B: Predicted, labels_B: IntArray) -> float | None:
    return float(correct_B.mean())


def _auroc(bins_BK: Predicted, labels_B: IntArray) -> float | None:
    """Of class 1 of two, or the mean of all classes against the rest."""
    classes = [1] if bins_BK.shape[1] == 1 else range(bins_BK.shape[1])
    each = [auroc_of(bins_B, (labels_B == k).astype(np.int64)) for k, bins_B in zip(classes, bins_BK.T, strict=True)]
    defined = [one for one in each if one is not None]
    return sum(defined) / len(defined) if len(defined) == len(each) else None
