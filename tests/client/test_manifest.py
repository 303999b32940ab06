import copy
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from client.entries import read_site_manifest, study_problems
from client.manifest import site_file
from client.site_data import read_site
from client.tabular import TabularEntry
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import Study, load_study
from tests.client.conftest import MANIFEST, STUDY, SiteFolder, make_site


def manifest_problems(site: SiteFolder) -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        read_site_manifest(site.path, site.study())
    return caught.value.problems


def test_a_good_manifest_is_read(site: SiteFolder) -> None:
    declared = read_site_manifest(site.path, site.study())
    manifest = declared.manifest
    history, labs, scan = (entry for entry in declared.entries if isinstance(entry, TabularEntry))
    assert (manifest.site.name, manifest.site.label, manifest.site.split) == ("cleveland", None, "split")
    assert history.columns["sex"].column == "gender"
    assert history.columns["sex"].missing == ("9.0",)
    assert (labs.missing, labs.columns["chol"].column) == (("", "?"), "serum_chol")
    assert [(column.name, column.column) for column in scan.definitions] == [("volume", "vol"), ("device", None)]
    assert study_problems(declared, site.study(), "site.toml") == []


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ("patients = 6", "patients = 317", "public.patients", "has more than one significant figure"),
        ("patients = 6", "patients = 0", "public.patients", "should be greater than or equal to 1"),
        ("patients = 6", "patients = 6.0", "public.patients", "should be a valid integer"),
        ("full_modality = true", "", "public.full_modality", "is missing"),
        ("full_modality = true", 'full_modality = "yes"', "public.full_modality", "should be a valid boolean"),
        ('id = "patient"', 'idd = "patient"', "site.idd", "is not a known key"),
        ('id = "patient"', 'id = " "', "site.id", "is empty"),
        ('name = "labs"', 'name = "history"', "modality.history", "is listed twice"),
        ('name = "device"', 'name = "volume"', "modality.scan.column.volume", "is named twice"),
        ('missing = ["", "?"]', 'missing = "?"', "modality.labs.missing", "should be a list"),
        (
            'missing = ["", "?"]',
            "missing = [2020-01-01]",
            "modality.labs.missing.#1",
            "is neither a text nor a number",
        ),
        ('chol = "serum_chol"', "chol = 3", "modality.labs.columns.chol", "should be a table"),
        ('unit = "ml"', "range = [9, 0]", "modality.scan.column.volume.range", "is empty"),
        ('unit = "ml"', "typical = [0, 9]", "modality.scan.column.volume.typical", "stands without a range"),
        (
            'unit = "ml"',
            "range = [1, 9]\ntypical = [0, 9]",
            "modality.scan.column.volume.typical",
            "does not lie within the plausible range 1 to 9",
        ),
        ('unit = "ml"', "rnge = [0, 9]", "modality.scan.column.volume.rnge", "is not a known key"),
        ("missing = [9]", "mising = [9]", "modality.history.columns.sex.mising", "is not a known key"),
    ],
)
def test_broken_manifests(site: SiteFolder, old: str, new: str, place: str, what: str) -> None:
    site.edit("site.toml", old, new)
    assert (place, what) in [(problem.place, problem.what) for problem in manifest_problems(site)]


@pytest.mark.parametrize(
    ("old", "new", "place", "what", "remedy"),
    [
        ('name = "labs"', 'name = "lab"', "modality.lab", "is not a modality of the study", "Did you mean 'labs'?"),
        ("chol = ", "cho1 = ", "modality.labs.columns.cho1", "is not a column of the study", "Did you mean 'chol'?"),
        (
            'M = "male"',
            'M = "mal"',
            "modality.history.columns.sex.values",
            "leads to the unknown category 'mal'",
            "Did you mean 'male'?",
        ),
        (
            'chol = "serum_chol"',
            'chol = { values = { a = "b" } }',
            "modality.labs.columns.chol.values",
            "is for categorical columns only",
            "Remove it.",
        ),
        (
            'column = "vol"',
            'values = { a = "b" }',
            "modality.scan.column.volume.values",
            "is for categorical columns only",
            "Remove it.",
        ),
        (
            'categories = ["A", "B"]',
            'categories = ["A", "B"]\nvalues = { x = "C" }',
            "modality.scan.column.device.values",
            "leads to the unknown category 'C'",
            "Valid here: A, B.",
        ),
    ],
)
def test_manifests_that_do_not_fit_the_study(
    site: SiteFolder, old: str, new: str, place: str, what: str, remedy: str
) -> None:
    site.edit("site.toml", old, new)
    (problem,) = study_problems(read_site_manifest(site.path, site.study()), site.study(), "site.toml")
    assert (problem.place, problem.what, problem.remedy) == (place, what, remedy)


def test_columns_stand_where_the_encoder_says(site: SiteFolder) -> None:
    shared, local = STUDY.split("[[modality]]")[2], STUDY.split("[[modality]]")[3]
    swapped = local.replace("scan", "labs"), shared.replace("labs", "scan")
    site.write("study.toml", STUDY.replace(shared, swapped[0]).replace(local, swapped[1]))
    found = study_problems(read_site_manifest(site.path, site.study()), site.study(), "site.toml")
    assert [(problem.place, problem.what) for problem in found] == [
        ("modality.labs.columns", "maps columns that the study does not define"),
        ("modality.labs.column", "is missing"),
        ("modality.scan.column", "defines columns that the study already defines"),
    ]


def test_full_patients_need_every_modality(site: SiteFolder) -> None:
    declared = read_site_manifest(site.path, site.study())
    fewer = declared.manifest.model_copy(update={"modalities": declared.manifest.modalities[:2]})
    (problem,) = study_problems(replace(declared, manifest=fewer), site.study(), "site.toml")
    assert problem.place == "public.full_modality"


@pytest.mark.parametrize("name", ["../secret.csv", "/etc/passwd", "link.csv", "a/../../secret.csv"])
def test_files_stay_in_the_folder(site: SiteFolder, name: str) -> None:
    (site.path.parent / "secret.csv").write_text("x")
    (site / "link.csv").symlink_to(site.path.parent / "secret.csv")
    with pytest.raises(InputError, match="is outside the site folder"):
        site_file(site.path, name, "site.patients")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("", "names no file"),
        (".", "names no file"),
        ("absent.csv", "names no file"),
        ("a\0b", "is not a path"),
        ("x" * 5000, "is not a path"),
        ("loop", "is not a path"),
    ],
)
def test_names_of_no_file(site: SiteFolder, name: str, what: str) -> None:
    (site / "loop").symlink_to(site / "loop")
    with pytest.raises(InputError, match=what):
        site_file(site.path, name, "site.patients")


def test_a_link_within_the_folder_is_fine(site: SiteFolder) -> None:
    (site / "link.csv").symlink_to("labs.csv")
    assert site_file(site.path, "link.csv", "site.patients") == (site / "labs.csv").resolve()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> SiteFolder:
    return make_site(tmp_path_factory.mktemp("fuzz") / "cleveland")


def read_or_refuse(site: SiteFolder, manifest: str, study: Study) -> None:
    """Nothing but InputError, with problems on one line each, may come of any manifest."""
    (site / "site.toml").write_text(manifest, encoding="utf-8")
    try:
        read_site(site.path, study, ("train", "test"))
    except InputError as error:
        assert error.problems
        assert all(problem.what and problem.remedy for problem in error.problems)


TOML_ISH = st.lists(
    st.sampled_from([*MANIFEST.splitlines(), "[[modality]]", "[modality.columns]", "x = [", "= 3", '"""', "a.b = 1"])
    | st.text("[]{}=\"'.,#\n ab1-:\\é\x00", max_size=12),
    max_size=25,
).map("\n".join)


@given(text=TOML_ISH)
@settings(max_examples=120, deadline=None)
def test_any_text_is_a_site_or_an_input_error(fuzzed: SiteFolder, text: str) -> None:
    read_or_refuse(fuzzed, text, load_study(fuzzed / "study.toml"))


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text("ab/.\0\n%é ", max_size=6),
    st.sampled_from(["patients.csv", "labs.csv", "..", "patient", "split", "disease", "male", "numeric", "scan"]),
    st.datetimes(),
    st.just([]),
    st.just({}),
    st.lists(st.sampled_from(["?", 1, 2.5, True]), max_size=3),
    st.dictionaries(
        st.sampled_from(["column", "missing", "values", "name", "type"]),
        st.sampled_from(["patient", 3, [1], {"a": "male"}, "numeric"]),
    ),
)


def paths_in(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key and entry of a nested document."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in pairs:
        yield (*path, key)
        yield from paths_in(child, (*path, key))


@st.composite
def mutated_manifests(draw: st.DrawFn) -> str:
    document: Any = tomllib.loads(MANIFEST)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(list(paths_in(document))))
        parent = document
        for key in path:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "remove", "rename"])):
            case "replace":
                parent[last] = copy.deepcopy(draw(VALUES))  # the next mutation may reach into it
            case "remove":
                del parent[last]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text("abco_ ", min_size=1, max_size=6))] = parent.pop(last)
    return tomli_w.dumps(document)


@given(text=mutated_manifests())
@settings(max_examples=200, deadline=None)
def test_any_mutation_is_a_site_or_an_input_error(fuzzed: SiteFolder, text: str) -> None:
    read_or_refuse(fuzzed, text, load_study(fuzzed / "study.toml"))
