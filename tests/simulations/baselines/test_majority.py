from pathlib import Path

import numpy as np

from simulations.baselines.majority import majority_class
from tests.simulations.baselines.patients import prepared


def test_each_hospital_expects_its_own_share_of_the_classes(tmp_path: Path) -> None:
    study, _, sites = prepared(tmp_path / "study", classes=3)
    for name, predicted in majority_class(study, sites).items():
        cohorts = sites[name].cohorts
        seen = np.concatenate([cohorts[split].labels_B.numpy() for split in ("train", "validation")])
        assert predicted.probabilities_BY.shape == (len(cohorts["test"]), 3)
        assert (predicted.probabilities_BY == np.bincount(seen, minlength=3) / len(seen)).all()
        assert predicted.labels_B.tolist() == cohorts["test"].labels_B.tolist()
