from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.bundle import Bundle, read_bundle
from client.prediction import Predictor, predict_cohort
from flexmoe_core.cohort import Cohort
from flexmoe_core.evaluation import predict
from flexmoe_core.site_effect import SiteEffect
from tests.client.conftest import SiteFolder
from tests.client.coordinator import RUN, coordinate, make_cpu_site

MODALITIES = 3


@pytest.fixture
def bundle(site: SiteFolder, tmp_path: Path) -> Bundle:
    """What the site has after a run of one round."""
    hospital = make_cpu_site(site.path, tmp_path / "state")
    coordinator = coordinate(site.study(), hospital)
    hospital.train(coordinator.train())
    hospital.finish(coordinator.finish(1))
    return read_bundle(tmp_path / "state" / RUN / "bundle")


def patients(bundle: Bundle, *masks: int) -> Cohort:
    """Patients with random values, who have the modalities of these combinations."""
    generator = torch.Generator().manual_seed(1)
    observed_BM = (
        torch.tensor([[mask >> m & 1 for m in range(MODALITIES)] for mask in masks])
        .bool()
        .reshape(len(masks), MODALITIES)
    )
    inputs = {
        one.name: torch.randn(len(masks), *one.shape, generator=generator) * observed_BM[:, m, None]
        for m, one in enumerate(bundle.facts.inputs)
    }
    return Cohort(inputs, observed_BM, torch.zeros(len(masks), dtype=torch.int64))


def test_patients_of_every_combination_get_probabilities(bundle: Bundle) -> None:
    never_trained = set(range(1, 8)) - set(bundle.facts.table.masks)
    assert never_trained == {0b010, 0b011, 0b100, 0b110}
    probabilities_BY = predict_cohort(bundle, patients(bundle, *range(1, 8)))
    assert probabilities_BY.shape == (7, 2)
    np.testing.assert_allclose(probabilities_BY.sum(axis=1), 1.0)
    assert (probabilities_BY > 0).all()
    assert len({row.tobytes() for row in probabilities_BY}) == 7


def test_a_patient_without_any_modality_gets_the_training_prior(bundle: Bundle) -> None:
    cohort = patients(bundle, 0, 7, 0)
    probabilities_BY = predict_cohort(bundle, cohort)
    assert bundle.facts.prior == (1 / 3, 2 / 3)
    np.testing.assert_array_equal(probabilities_BY[[0, 2]], [bundle.facts.prior] * 2)
    alone_BY = predict_cohort(bundle, cohort.select(torch.tensor([1])))
    np.testing.assert_allclose(probabilities_BY[1], alone_BY[0], rtol=1e-6)


@pytest.mark.parametrize("masks", [(), (0,), (0, 0)])
def test_nobody_to_be_scored(bundle: Bundle, masks: tuple[int, ...]) -> None:
    probabilities_BY = predict_cohort(bundle, patients(bundle, *masks))
    np.testing.assert_array_equal(probabilities_BY, np.tile(bundle.facts.prior, (len(masks), 1)))


def test_a_patient_is_scored_as_at_the_finish(bundle: Bundle, site: SiteFolder) -> None:
    """In the generalize stage the router alone decides, after it the combination's expert does."""
    cohort = site.read().cohorts["train"]
    specialized = bundle.facts.model_copy(update={"rounds": 2})
    generalist_BY = predict_cohort(bundle, cohort)
    specialist_BY = predict_cohort(Bundle(specialized, bundle.model, bundle.effect, ""), cohort)
    full_B = cohort.observed_BM.all(dim=1).numpy()
    np.testing.assert_array_equal(generalist_BY[full_B], specialist_BY[full_B])
    assert not np.array_equal(generalist_BY[~full_B], specialist_BY[~full_B])


@pytest.mark.parametrize("intercept", [(0.0, 0.0), (-0.7, 0.7)])
def test_the_effect_joins_what_the_shared_model_says(bundle: Bundle, intercept: tuple[float, ...]) -> None:
    silent = {name: np.zeros_like(slopes_FY) for name, slopes_FY in bundle.effect.slopes_FY.items()}
    lacking_MY = np.zeros_like(bundle.effect.lacking_MY)
    effect = SiteEffect(bundle.model.modalities, 1.0, np.array(intercept), lacking_MY, silent)
    facts, cohort = bundle.facts, patients(bundle, 0, *range(1, 8))
    found_BY = predict_cohort(replace(bundle, effect=effect), cohort)
    seen = cohort.select(torch.arange(1, 8))
    shared_BY = predict(bundle.model, seen, facts.table, specialize=False).probabilities_BY
    odds_B = found_BY[1:, 1] / found_BY[1:, 0] / (shared_BY[:, 1] / shared_BY[:, 0])
    np.testing.assert_allclose(odds_B, np.exp(intercept[1] - intercept[0]))
    np.testing.assert_array_equal(found_BY[0], facts.prior)  # the prior is the site's already


def test_a_site_scores_with_what_its_bundle_keeps(bundle: Bundle, site: SiteFolder) -> None:
    of_bundle, cohorts = Predictor.of_bundle(bundle), site.read().cohorts
    settings = bundle.facts.terms.method.site
    training, validation = cohorts["train"], cohorts["validation"]
    model = bundle.model, of_bundle.table, of_bundle.specialize
    share = Predictor.during_training(*model, training, settings).regression_share(training, validation, settings)
    fitted = Predictor.final(*model, training, validation, share, settings)
    np.testing.assert_array_equal(fitted.prior_Y, of_bundle.prior_Y)
    for name, array in fitted.effect.to_arrays().items():
        np.testing.assert_array_equal(of_bundle.effect.to_arrays()[name], array)
    assert 0 < fitted.effect.kept < 1
    assert fitted.effect.intercept_Y.any()
    cohort = patients(bundle, 0, 7)
    np.testing.assert_array_equal(fitted(cohort).probabilities_BY, predict_cohort(bundle, cohort))
    np.testing.assert_allclose(fitted(cohort).gates_BE.sum(axis=1), [0, 1], rtol=1e-6)
