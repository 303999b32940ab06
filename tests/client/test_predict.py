import csv
import json
import shutil
import socket
import stat
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.bundle import bundle_digest, read_bundle
from client.cli import app, main
from client.prediction import Predictor
from client.site_data import read_site
from flexmoe_core.score_metrics import summary
from flexmoe_core.scores import Scores
from flexmoe_core.study import load_study
from server.run_store import RunStore
from simulations.runs import simulate, site_bundle
from tests.client.conftest import MANIFEST, SiteFolder, make_site
from tests.client.coordinator import RUN, coordinate, make_cpu_site
from tests.simulations.federations import tiny_settings, tiny_study

SECRET = "87310"
PRIOR = [1 / 3, 2 / 3]
HEADER = ["patient", "probability_absent", "probability_present", "predicted_class", "modalities"]
HEADER += ["combination_trained", "model", "run"]
HAS = list(product((True, False), repeat=3))
"""Who has history, labs and scan: every combination."""
COMBINATIONS = [
    "history + labs + scan",
    "history + labs",
    "history + scan",
    "history",
    "labs + scan",
    "labs",
    "scan",
    "(none)",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the good folder's site has after a run of one round."""
    folder = tmp_path_factory.mktemp("trained")
    site = make_site(folder / "cleveland")
    hospital = make_cpu_site(site.path, folder / "state")
    coordinator = coordinate(site.study(), hospital)
    hospital.train(coordinator.train())
    hospital.finish(coordinator.finish(1))
    return folder / "state" / RUN / "bundle"


@pytest.fixture
def new(tmp_path: Path) -> SiteFolder:
    """Eight unlabeled patients, one of every combination of modalities."""
    folder = SiteFolder(tmp_path / "new")
    folder.path.mkdir()
    folder.write("site.toml", MANIFEST)
    ids = [f"q{place}" for place in range(len(HAS))]
    folder.write("patients.csv", "patient\n" + "".join(f"{patient}\n" for patient in ids))
    folder.write("history.csv", table("patient,age,gender", ids, 0, "{},64,F"))
    folder.write("labs.csv", table("patient,serum_chol", ids, 1, "{},250"))
    scans = [patient for patient, has in zip(ids, HAS, strict=True) if has[2]]
    folder.scans(patient=scans, vol=[25.0] * len(scans), device=["B"] * len(scans))
    return folder


def table(header: str, ids: Sequence[str], modality: int, row: str) -> str:
    rows = [row.format(patient) for patient, has in zip(ids, HAS, strict=True) if has[modality]]
    return "\n".join([header, *rows]) + "\n"


def run(bundle: Path, folder: Path, output: Path, *options: object) -> Result:
    arguments = ["predict", bundle, "--input", folder, "--output", output, "--device", "cpu", *options]
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(one) for one in arguments])


def predicted(bundle: Path, folder: Path, output: Path, *options: object) -> pd.DataFrame:
    result = run(bundle, folder, output, *options)
    assert result.exit_code == 0, result
    return pd.read_csv(output) if output.suffix == ".csv" else pd.read_parquet(output)


def told(bundle: Path, folder: Path, output: Path, *options: object) -> str:
    """What the program says on stderr when it ends with 2."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        words: list[str] = []
        patch.setattr("flexmoe_core.command_line.tell", words.extend)
        arguments = ["flexmoe-client", "predict", bundle, "--input", folder, "--output", output, *options]
        patch.setattr("sys.argv", [str(one) for one in arguments])
        main()
    assert ended.value.code == 2
    assert words
    return "\n".join(words)


def test_every_combination_is_predicted(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    found = predicted(bundle, new.path, tmp_path / "out.csv")
    assert list(found.columns) == HEADER
    assert found["patient"].tolist() == [f"q{place}" for place in range(8)]
    assert found["modalities"].tolist() == COMBINATIONS
    trained = {"history + labs + scan", "history + scan", "history"}
    assert found["combination_trained"].tolist() == [name in trained for name in COMBINATIONS]
    probabilities_BY = found[HEADER[1:3]].to_numpy()
    np.testing.assert_allclose(probabilities_BY.sum(axis=1), 1)
    assert probabilities_BY[-1].tolist() == PRIOR
    assert len({row.tobytes() for row in probabilities_BY}) == 8
    expected = ["present" if present >= 0.5 else "absent" for present in probabilities_BY[:, 1]]
    assert found["predicted_class"].tolist() == expected
    assert set(found["model"]) == {bundle_digest(bundle)}
    assert set(found["run"]) == {RUN}


def test_the_terminal_shows_combinations_and_where_the_file_is(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    result = run(bundle, new.path, tmp_path / "out.csv")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    assert ["history + scan", "1", "yes"] in rows
    assert ["labs + scan", "1", "no"] in rows
    assert ["(none)", "1", "no"] in rows
    assert ["all patients", "8", ""] in rows
    assert "Patients with a combination that was never trained: 4 of 8." in result.stdout
    assert "Patients without any modality: 1." in result.stdout
    assert result.stdout.splitlines()[-1] == f"Predictions   {tmp_path / 'out.csv'}"
    assert not any(f"q{place}" in result.stdout.replace(str(tmp_path), "") for place in range(8))


def test_a_folder_with_every_modality_is_silent_about_those_without(
    bundle: Path, new: SiteFolder, tmp_path: Path
) -> None:
    new.write("patients.csv", "patient\nq0\n")
    for name in ("history.csv", "labs.csv"):
        new.write(name, "\n".join((new / name).read_text().splitlines()[:2]) + "\n")
    new.scans(patient=["q0"], vol=[25.0], device=["B"])
    assert "without any modality" not in run(bundle, new.path, tmp_path / "out.csv").stdout


def test_parquet_in_and_out_equals_csv(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    in_csv = predicted(bundle, new.path, tmp_path / "a.csv")
    out_parquet = predicted(bundle, new.path, tmp_path / "a.PARQUET")
    pd.testing.assert_frame_equal(in_csv, out_parquet, check_exact=True)
    for name in ("patients", "history", "labs"):
        pd.read_csv(new / f"{name}.csv").to_parquet(new / f"{name}.parquet")
        (new / f"{name}.csv").unlink()
    pd.read_parquet(new / "scan.parquet").to_csv(new / "scan.csv", index=False)
    text = (new / "site.toml").read_text().replace(".csv", ".new").replace(".parquet", ".csv")
    new.write("site.toml", text.replace(".new", ".parquet"))
    (new / "scan.parquet").unlink()
    predicted(bundle, new.path, tmp_path / "b.csv")
    predicted(bundle, new.path, tmp_path / "b.parquet")
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "b.parquet"), out_parquet, check_exact=True)


def test_ids_with_commas_and_leading_zeros_survive(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    new.edit("patients.csv", "q7", '"007, ""x"""')
    predicted(bundle, new.path, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[-1][0] == '007, "x"'


def test_the_file_is_for_its_owner_alone_and_nothing_else_is_written(
    bundle: Path, new: SiteFolder, tmp_path: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (*new.path.rglob("*"), *bundle.parent.rglob("*"))}
    (tmp_path / "out").mkdir()
    predicted(bundle, new.path, tmp_path / "out" / "p.csv")
    assert stat.S_IMODE((tmp_path / "out" / "p.csv").stat().st_mode) == 0o600
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["p.csv"]
    after = {file: file.stat().st_mtime_ns for file in (*new.path.rglob("*"), *bundle.parent.rglob("*"))}
    assert after == before


def test_an_existing_file_is_replaced_by_force_alone(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("precious")
    output.chmod(0o644)
    assert "out.csv: exists already. Choose another name, or replace it with --force." in told(
        bundle, new.path, output
    )
    assert output.read_text() == "precious"
    assert len(predicted(bundle, new.path, output, "--force")) == 8
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def test_a_failure_leaves_the_existing_file_as_it_was(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("precious")
    new.edit("labs.csv", "250", SECRET)
    assert SECRET not in told(bundle, new.path, output, "--force")
    assert output.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("out.txt", "is neither .csv nor .parquet"),
        ("out", "is neither .csv nor .parquet"),
        ("nowhere/out.csv", "is in a folder that does not exist"),
        ("folder.csv", "is a folder"),
        ("new/labs.csv", "is one of the files that are read"),
        (f"{'x' * 300}.csv", "cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written(bundle: Path, new: SiteFolder, tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    labs = (new / "labs.csv").read_bytes()
    assert what in told(bundle, new.path, tmp_path / name, "--force")
    assert (new / "labs.csv").read_bytes() == labs


def test_a_write_that_fails_is_told(
    bundle: Path, new: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.predictions_file.write_atomic", full)
    assert "out.csv: cannot be written: No space left on device." in told(bundle, new.path, tmp_path / "out.csv")


def test_an_id_column_called_as_a_column_of_the_output(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    for name in ("patients.csv", "history.csv", "labs.csv"):
        new.edit(name, "patient", "run")
    new.edit("site.toml", 'id = "patient"', 'id = "run"')
    pd.read_parquet(new / "scan.parquet").rename(columns={"patient": "run"}).to_parquet(new / "scan.parquet")
    assert f"{new / 'site.toml'}, site.id: is called 'run'" in told(bundle, new.path, tmp_path / "out.csv")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("change", ["missing", "truncated", "one bit", "another prior"])
def test_a_bundle_that_was_changed_is_refused(
    bundle: Path, new: SiteFolder, tmp_path: Path, name: str, change: str
) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    file = tmp_path / "bundle" / name
    data = bytearray(file.read_bytes())
    if change == "another prior":
        file = tmp_path / "bundle" / "model.json"
        stored = json.loads(file.read_text())
        stored["facts"]["prior"] = [0.9, 0.1]
        file.write_text(json.dumps(stored))
    elif change == "missing":
        file.unlink()
    elif change == "truncated":
        file.write_bytes(data[:-2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    assert "bundle/model." in told(tmp_path / "bundle", new.path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_folder_that_is_no_bundle(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    for folder in (bundle.parent, tmp_path / "nowhere", new / "site.toml"):
        assert f"{folder}: is no bundle." in told(folder, new.path, tmp_path / "out.csv")


def test_problems_are_told_with_their_place_and_no_value(bundle: Path, new: SiteFolder, tmp_path: Path) -> None:
    new.edit("labs.csv", "q0,250", f"q0,{SECRET}")
    new.edit("history.csv", "q1,64,F", f"q1,64,{SECRET}")
    new.edit("patients.csv", "q6", "q5")
    new.edit("site.toml", '"ml"', '"l"')
    words = told(bundle, new.path, tmp_path / "out.csv").splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in words] == [
        "site.toml, modality.scan.column.volume.unit",
        "patients.csv, column patient, line 8",
        "history.csv, column gender, line 3",
        "labs.csv, column serum_chol, line 2",
        "scan.parquet, column patient, row 4",
    ]
    assert not any(SECRET in line or "q0" in line or "q1" in line for line in words)


@pytest.mark.parametrize("arguments", [["--split", "tests"], ["--device", "tpu"], ["--device", "cuda:99"]])
def test_wrong_options_end_with_2(bundle: Path, new: SiteFolder, tmp_path: Path, arguments: list[str]) -> None:
    options = ["flexmoe-client", "predict", bundle, "--input", new.path, "--output", tmp_path / "out.csv", *arguments]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", [str(one) for one in options])
        main()
    assert ended.value.code == 2
    assert not (tmp_path / "out.csv").exists()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_study(tmp_path_factory.mktemp("study") / "sites")


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return simulate(study, tmp_path_factory.mktemp("run") / "run", tiny_settings("federation.rounds=2"), device="cpu")


def test_test_patients_are_predicted_as_the_run_reported_them(
    study: Path, finished: RunStore, tmp_path: Path
) -> None:
    """Every figure that the coordinator has of a site follows from the file that the site writes."""
    classes = load_study(study / "study.toml").label.classes
    for site, reported in finished.metrics()["test"]["sites"].items():
        found = predicted(site_bundle(finished, site), study / site, tmp_path / f"{site}.csv", "--split", "test")
        patients = pd.read_csv(study / site / "patients.csv").set_index("patient")
        assert found["patient"].tolist() == patients.index[patients["split"] == "test"].tolist()
        labels_B = patients.loc[found["patient"], "label"].map(classes.index).to_numpy()
        probabilities_BY = found[[f"probability_{name}" for name in classes]].to_numpy()
        scores = Scores.of(probabilities_BY, labels_B)
        assert json.loads(json.dumps(summary(scores))) == reported
        predicted_B = found["predicted_class"].map(classes.index).to_numpy()
        counts_YY = pd.crosstab(labels_B, predicted_B).reindex(index=range(2), columns=range(2), fill_value=0)
        assert (counts_YY.to_numpy() == scores.confusion_YY).all()


def test_a_sites_own_folder_is_predicted_as_by_its_predictor(study: Path, finished: RunStore, tmp_path: Path) -> None:
    bundle = read_bundle(site_bundle(finished, "site-1"))
    data = read_site(study / "site-1", bundle.facts.terms.study, ("train", "validation", "test"))
    found = predicted(site_bundle(finished, "site-1"), study / "site-1", tmp_path / "out.csv").set_index("patient")
    assert len(found) == 60
    for split, cohort in data.cohorts.items():
        expected_BY = Predictor.of_bundle(bundle)(cohort).probabilities_BY
        rows = found.loc[list(data.ids[split])]
        np.testing.assert_allclose(rows[["probability_class_0", "probability_class_1"]], expected_BY, atol=1e-6)


def test_nothing_asks_for_a_network(
    study: Path, finished: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(AssertionError, match="a socket was opened"):
        socket.socket()
    assert len(predicted(site_bundle(finished, "site-3"), study / "site-3", tmp_path / "out.parquet")) == 60
