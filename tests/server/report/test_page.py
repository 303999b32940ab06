import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from flexmoe_core.errors import CheckpointError, InputError
from flexmoe_core.evaluation import cells_to_arrays
from flexmoe_core.naming import under_prefix, with_prefix
from server.report.comparison import POOLED, Comparison, ComparisonRow, Measures, PairedDifference
from server.report.finished_run import read_run
from server.report.page import evaluate_run, write_report
from server.run_store import RunStore
from tests.server.report.fabricated import Fabrication, fabricate, tiny_cell

SECTIONS = (
    "summary",
    "learning",
    "hospitals",
    "combinations",
    "calibration",
    "coverage",
    "routing",
    "log",
    "settings",
    "provenance",
)
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> $x^2$ \" & \x00"


class Page(HTMLParser):
    """Tags, ids, references and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.labels: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for _, value in attrs))
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "svg":
            self.labels.append(given.get("aria-label") or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def page(plain: Path) -> Page:
    return Page(write_report(plain))


def comparison() -> Comparison:
    methods = ("Federated Flex-MoE", "Local only", "Majority class")
    rows = (
        ComparisonRow("alder", 100, 40, {methods[0]: Measures(0.81234, 0.9), methods[1]: Measures(0.7, None)}),
        ComparisonRow(POOLED, 300, 140, dict.fromkeys(methods, Measures(0.75, 0.8))),
    )
    differences = (PairedDifference(POOLED, methods[0], methods[1], "auroc", -0.0123, -0.05, 0.02),)
    return Comparison(methods, rows, "All were tuned on validation patients.", differences)


def test_the_page_has_every_section_and_needs_nothing_else(page: Page) -> None:
    assert [one for one in page.ids if one in SECTIONS] == list(SECTIONS)
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert not {"script", "link", "iframe", "img", "object", "image"} & set(page.tags)
    assert not page.handlers
    assert "http" not in page.source
    assert "@import" not in page.source


def test_ids_are_unique_and_figures_speak(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert len(page.labels) == 6
    assert all(len(label) > 40 for label in page.labels)


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    pages = [write_report(fabricate(tmp_path / name, Fabrication(rounds=4))) for name in ("first", "second")]
    first = pages[0].read_bytes()
    assert pages[1].read_bytes() == first
    assert write_report(tmp_path / "first").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_figures_follow_the_theme_of_the_page(page: Page) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL)
    assert {color for svg in drawings for color in re.findall(r"#[0-9a-f]{6}\b", svg)} == set()
    assert all("var(--ink)" in svg or "var(--muted)" in svg for svg in drawings)


def test_numbers_agree_with_the_metrics_of_the_run(plain: Path, page: Page) -> None:
    run, text = read_run(plain), page.text
    pooled = evaluate_run(run).pooled
    accuracy = pooled.estimates["accuracy"]
    assert accuracy.value is not None
    assert accuracy.interval is not None
    low, high = accuracy.interval
    assert low < accuracy.value < high
    assert f"an accuracy of {accuracy.value:.3f} (95% CI {low:.3f}\N{EN DASH}{high:.3f})" in text
    assert f"on {run.pooled(run.test).n} test patients" in text


def test_words_from_outside_stay_words(tmp_path: Path) -> None:
    made = Fabrication(
        classes=("absent", HOSTILE),
        lost_at_finish={HOSTILE: HOSTILE, "birch": HOSTILE},
        lost_in_round_2={"alder": HOSTILE},
        rounds=3,
    )
    page = Page(write_report(fabricate(tmp_path / "run", made)))
    assert not {"script", "img"} & set(page.tags)
    assert not page.handlers
    assert "<script>alert('x')</script><img src=x onerror=alert(1)> $x^2$ \" &" in page.text


def test_too_few_patients_of_a_class_are_said_to_be_too_few(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", Fabrication(rounds=2))
    arrays, facts = RunStore.open(folder).results()
    kept = {name: value for name, value in arrays.items() if not name.startswith("test/birch/")}
    tiny = with_prefix("test/birch", cells_to_arrays({0b1111: tiny_cell(positives=30, negatives=1)}))
    RunStore.open(folder).save_results({**kept, **tiny}, facts)
    evaluation = evaluate_run(read_run(folder)).sites["birch"]
    assert evaluation.estimates["auroc"].value is None
    assert evaluation.estimates["auroc"].reason == "only 1 'absent'"
    assert evaluation.estimates["accuracy"].value == 1.0
    text = Page(write_report(folder)).text
    assert "n/a: only 1 'absent'" in text
    assert "nan" not in text.lower().split()


def test_missing_sites_are_named_with_their_reasons(tmp_path: Path) -> None:
    made = Fabrication(
        lost_at_finish={"cedar": "ran out of memory"},
        lost_in_round_2={"birch": "error 1: an id"},
        silent_in_round_3=["alder"],
    )
    text = Page(write_report(fabricate(tmp_path / "run", made))).text
    assert "absent from the test results: cedar (ran out of memory)" in text
    assert "birch (error 1: an id)" in text
    assert "alder (no answer in time)" in text
    assert "11 of 12 rounds aggregated" in text


@pytest.mark.parametrize(
    "made",
    [
        Fabrication(rounds=1),
        Fabrication(rounds=2, has_validation=False),
        Fabrication(sites=("alder",), rounds=2, lost_at_finish={"alder": "no answer"}),
        Fabrication(classes=("a", "b", "c"), rounds=2),
        Fabrication(classes=tuple("abcdefgh"), rounds=2, experts=40),
        Fabrication(sites=[f"hospital-{place:02d}" for place in range(20)], rounds=2, masks=(0b1111, 0b0011)),
        Fabrication(sites=("alder",), modalities=[f"m{m}" for m in range(8)], masks=[255, *range(1, 120)], rounds=2),
    ],
    ids=[
        "one round",
        "no validation",
        "no results",
        "three classes",
        "many experts",
        "many sites",
        "many combinations",
    ],
)
def test_unusual_runs_have_a_whole_page(made: Fabrication, tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", made)
    page = Page(write_report(folder))
    assert [one for one in page.ids if one in SECTIONS] == list(SECTIONS)
    assert all(site in page.text for site in made.sites)
    assert ("No hospital reported test results" in page.text) == (len(made.lost_at_finish) == len(made.sites))
    assert ("No hospital reported validation results" in page.text) == (not made.has_validation)


def test_a_comparison_is_shown_and_kept(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", Fabrication(rounds=2))
    page = Page(write_report(folder, comparison()))
    assert "comparison" in page.ids
    for shown in ("0.812", "All were tuned on validation patients.", "\N{MINUS SIGN}0.012", "Majority class"):
        assert shown in page.text
    first = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_broken_comparison_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", Fabrication(rounds=2))
    (folder / "comparison.json").write_text("{}")
    with pytest.raises(InputError, match="is not a comparison"):
        write_report(folder)


def test_a_run_that_goes_on_has_no_page_yet(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", Fabrication(rounds=2))
    (folder / "results.json").unlink()
    with pytest.raises(CheckpointError, match="has not finished"):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_every_setting_is_listed(plain: Path, page: Page) -> None:
    def leaves(tree: dict[str, object], prefix: str = "") -> list[str]:
        return [
            name
            for key, value in tree.items()
            for name in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
        ]

    assert [key for key in leaves(read_run(plain).settings.model_dump(mode="json")) if key not in page.text] == []


def test_routing_shares_are_means_over_patients(plain: Path, page: Page) -> None:
    run = read_run(plain)
    arrays, _ = RunStore.open(plain).results()
    full = [under_prefix(f"test/{site}/15", arrays) for site in run.sites]
    gates_E = sum(one["gates"] for one in full if one)
    n = sum(int(one["confusion_YY"].sum()) for one in full if one)
    label = next(one for one in page.labels if one.startswith("Mean share of the gate"))
    assert f"history + labs + imaging + genomics: most to expert 0 ({100 * np.max(gates_E) / n:.0f}%)" in label


def test_history_of_another_form_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", Fabrication(rounds=2))
    (folder / "history.jsonl").write_text(json.dumps({"round": 1}) + "\n")
    with pytest.raises(InputError, match=r"history\.jsonl"):
        write_report(folder)
