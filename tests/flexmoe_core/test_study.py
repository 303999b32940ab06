from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmoe_core.errors import InputError
from flexmoe_core.modalities.embedding import EmbeddingModality, EmbeddingPreprocessing
from flexmoe_core.modalities.sequence import SequenceModality
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn, TabularModality
from flexmoe_core.study import Label, Study, load_study

GOOD = """
[study]
name = "uci-heart"
[label]
name = "disease"
classes = ["absent", "present"]
[[modality]]
name = "history"
kind = "tabular"
encoder = "shared"
[[modality.column]]
name = "age"
type = "numeric"
unit = "years"
range = [20, 90]
[[modality.column]]
name = "sex"
type = "categorical"
categories = ["female", "male"]
[[modality]]
name = "labs"
kind = "tabular"
encoder = "local"
[[combination]]
modalities = ["history", "labs"]
"""


def load(text: str, folder: Path) -> Study:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    study = load(GOOD, tmp_path)
    assert study == Study(
        name="uci-heart",
        label=Label(name="disease", classes=("absent", "present")),
        modalities=(
            TabularModality(
                name="history",
                encoder="shared",
                columns=(
                    NumericColumn(name="age", unit="years", range=(20, 90)),
                    CategoricalColumn(name="sex", categories=("female", "male")),
                ),
            ),
            TabularModality(name="labs", encoder="local"),
        ),
        combinations=(("history", "labs"),),
    )
    assert study.modality("history").shape == (5,)
    assert [modality.contents for modality in study.modalities] == ["age, sex", ""]
    with pytest.raises(ValueError, match="its site only"):
        _ = study.modality("labs").shape


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ("range = [20, 90]", "range = [90, 20]", "modality.history.column.age.range", "is empty"),
        ("range = [20, 90]", "range = [5e-324, 1e-323]", "modality.history.column.age.range", "is empty"),
        ("range = [20, 90]", "range = [20]", "modality.history.column.age.range.#2", "is missing"),
        ("range = [20, 90]", "range = [true, 9]", "modality.history.column.age.range.#1", "valid number"),
        ("range = [20, 90]", "range = [nan, 9]", "modality.history.column.age.range.#1", "should be"),
        ("range = [20, 90]", "range = [2, inf]", "modality.history.column.age.range.#2", "should be"),
        ("[20, 90]", "[20, 90]\ntypical = [90, 20]", "modality.history.column.age.typical", "is empty"),
        ("[20, 90]", "[20, 90]\ntypical = [10, 80]", "modality.history.column.age.typical", "range 20 to 90"),
        ('kind = "tabular"\nencoder = "l', 'kind = "scan"\nencoder = "l', "modality.labs.kind", "'tabular'"),
        ('"local"', '"lokal"', "modality.labs.encoder", "'shared' or 'local'"),
        ('"local"', '"shared"', "modality.labs.column", "is missing"),
        ('encoder = "shared"', 'encoder = "local"', "modality.history.column", "not allowed"),
        ('name = "sex"', 'name = "age"', "modality.history.column.age", "is named twice"),
        ('name = "labs"', 'name = "history"', "modality.history", "is named twice"),
        ('name = "labs"', 'name = "../labs"', "modality.../labs.name", "is not a safe name"),
        ('"uci-heart"', '"uci/heart"', "study.name", "is not a safe name"),
        ('"uci-heart"', '"heart\\n"', "study.name", "is not a safe name"),
        ('["absent", "present"]', '["absent"]', "label.classes", "at least 2"),
        ('["absent", "present"]', '["present", "present"]', "label.classes", "twice"),
        ('["female", "male"]', "[]", "modality.history.column.sex.categories", "at least 1"),
        ('["female", "male"]', '["female", ""]', "modality.history.column.sex.categories", "is empty"),
        ('["history", "labs"]', '["history", "lab"]', "combination.#1", "unknown modality 'lab'"),
        ('["history", "labs"]', '["labs", "labs"]', "combination.#1", "twice"),
        ('["history", "labs"]', "[]", "combination.#1", "is empty"),
        (
            "[[combination]]",
            '[[combination]]\nmodalities = ["labs", "history"]\n[[combination]]',
            "combination.#2",
            "repeats",
        ),
        ("[study]", "[studdy]", "studdy", "is not a known key"),
    ],
)
def test_broken_files(tmp_path: Path, old: str, new: str, place: str, what: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        load(GOOD.replace(old, new, 1), tmp_path)
    found = [problem for problem in caught.value.problems if problem.place == place]
    assert any(what in problem.what for problem in found), caught.value.problems


SCAN = """
[[modality]]
name = "scan"
kind = "embedding"
encoder = "shared"
size = 76
range = [0, 1023]
"""


def test_an_embedding_is_declared_by_size_and_range(tmp_path: Path) -> None:
    study = load(GOOD + SCAN, tmp_path)
    scan = EmbeddingModality(name="scan", encoder="shared", size=76, range=(0, 1023))
    assert study.modality("scan") == scan
    assert (scan.shape, scan.contents) == ((76,), "76 numbers")
    assert scan.preprocessing == EmbeddingPreprocessing(ranges=((0, 1023),) * 76)


def test_each_number_of_an_embedding_may_have_its_range(tmp_path: Path) -> None:
    text = SCAN.replace("size = 76", "size = 2").replace("range = [0, 1023]", "ranges = [[0, 1], [-0.5, 1e3]]")
    study = load(GOOD + text, tmp_path)
    scan = study.modality("scan")
    assert scan == EmbeddingModality(name="scan", encoder="shared", size=2, ranges=((0, 1), (-0.5, 1000)))
    assert scan.preprocessing == EmbeddingPreprocessing(ranges=((0, 1), (-0.5, 1000)))
    (tmp_path / "again").mkdir()
    assert load(study.to_toml(), tmp_path / "again") == study


@pytest.mark.parametrize(
    ("old", "new", "place", "what", "remedy"),
    [
        ("size = 76", "", "modality.scan.size", "is missing", "Declare it"),
        ("range = [0, 1023]", "", "modality.scan.range", "is missing", "Declare it"),
        ('"shared"', '"local"', "modality.scan.size", "not allowed with a local", "Remove it"),
        ('"shared"', '"local"', "modality.scan.range", "not allowed with a local", "Move it"),
        ("size = 76", "size = 0", "modality.scan.size", "greater than or equal to 1", "Correct it"),
        ("size = 76", "size = 70000", "modality.scan.size", "less than or equal to 65536", "Correct it"),
        ("size = 76", "size = true", "modality.scan.size", "valid integer", "Correct it"),
        ("size = 76", 'size = "76"', "modality.scan.size", "valid integer", "Correct it"),
        ("[0, 1023]", "[5, 5]", "modality.scan.range", "is empty", "lower limit first"),
        ("size = 76", "size = 1\nranges = [[0, 1]]", "modality.scan.range", "cannot stand beside", "one of the two"),
        ("range = [0, 1023]", "ranges = [[0, 1], [2, 3]]", "modality.scan.ranges", "2, but the size is 76", "each"),
        (
            "range = [0, 1023]",
            "ranges = [[0, 1], [2, 2]]",
            "modality.scan.ranges.#2",
            "is empty",
            "lower limit first",
        ),
        (
            '"shared"\nsize = 76\nrange = [0, 1023]',
            '"local"\nranges = []',
            "modality.scan.ranges",
            "local",
            "Move it",
        ),
        ("size = 76", "size = 76\nsise = 76", "modality.scan.sise", "is not a known key", "Did you mean 'size'?"),
        ("size = 76", "size = 76\ncolumn = []", "modality.scan.column", "is not a known key", "Valid here: encoder"),
        ('"embedding"', '"embeding"', "modality.scan.kind", "'tabular', 'embedding'", "Correct it"),
        ('kind = "embedding"', "", "modality.scan.kind", "is missing", "Add it"),
    ],
)
def test_broken_embeddings(tmp_path: Path, old: str, new: str, place: str, what: str, remedy: str) -> None:
    assert old in SCAN
    with pytest.raises(InputError) as caught:
        load(GOOD + SCAN.replace(old, new), tmp_path)
    found = [problem for problem in caught.value.problems if problem.place == place]
    assert any(what in problem.what and remedy in problem.remedy for problem in found), caught.value.problems


VITALS = """
[[modality]]
name = "vitals"
kind = "sequence"
encoder = "shared"
longest = 32
time_unit = "hours"
time_range = [0, 48]
[[modality.column]]
name = "rate"
type = "numeric"
range = [40, 200]
[[modality.column]]
name = "rhythm"
type = "categorical"
categories = ["sinus", "other"]
"""


def test_a_sequence_is_declared_by_columns_times_and_length(tmp_path: Path) -> None:
    vitals = load(GOOD + VITALS, tmp_path).modality("vitals")
    rate = NumericColumn(name="rate", range=(40, 200))
    rhythm = CategoricalColumn(name="rhythm", categories=("sinus", "other"))
    assert vitals == SequenceModality(
        name="vitals", encoder="shared", columns=(rate, rhythm), longest=32, time_unit="hours", time_range=(0, 48)
    )
    assert (vitals.shape, vitals.contents) == ((32, 8), "rate, rhythm, over hours, at most 32 rows")
    by_default = load(GOOD + VITALS.replace("longest = 32", ""), tmp_path).modality("vitals")
    assert by_default.shape == (64, 8)


@pytest.mark.parametrize(
    ("old", "new", "place", "what"),
    [
        ('time_unit = "hours"', "", "modality.vitals.time_unit", "is missing"),
        ('time_unit = "hours"', 'time_unit = ""', "modality.vitals.time_unit", "at least 1"),
        ("time_range = [0, 48]", "", "modality.vitals.time_range", "is missing"),
        ("time_range = [0, 48]", "time_range = [48, 0]", "modality.vitals.time_range", "is empty"),
        ('"shared"', '"local"', "modality.vitals.time_unit", "not allowed with a local"),
        ('"shared"', '"local"', "modality.vitals.time_range", "not allowed with a local"),
        ('"shared"', '"local"', "modality.vitals.column", "not allowed with a local"),
        ("longest = 32", "longest = 0", "modality.vitals.longest", "greater than or equal to 1"),
        ("longest = 32", "longest = 5000", "modality.vitals.longest", "less than or equal to 4096"),
        ("longest = 32", "longest = 2.5", "modality.vitals.longest", "valid integer"),
        ("[40, 200]", "[200, 40]", "modality.vitals.column.rate.range", "is empty"),
        ('"rhythm"', '"rate"', "modality.vitals.column.rate", "is named twice"),
        ('["sinus", "other"]', "[]", "modality.vitals.column.rhythm.categories", "at least 1"),
        ("longest = 32", "size = 32", "modality.vitals.size", "is not a known key"),
    ],
)
def test_broken_sequences(tmp_path: Path, old: str, new: str, place: str, what: str) -> None:
    assert old in VITALS
    with pytest.raises(InputError) as caught:
        load(GOOD + VITALS.replace(old, new), tmp_path)
    found = [problem for problem in caught.value.problems if problem.place == place]
    assert any(what in problem.what and problem.remedy for problem in found), caught.value.problems


@pytest.mark.parametrize("count", [0, 63])
def test_a_study_has_1_to_62_modalities(count: int) -> None:
    modalities = tuple(TabularModality(name=f"m{place}", encoder="local") for place in range(max(count, 62)))
    fields = {"name": "s", "label": {"name": "y", "classes": ("a", "b")}}
    assert len(Study.model_validate(fields | {"modalities": modalities[:62]}).modalities) == 62
    with pytest.raises(ValueError, match=f"lists {count} modalities"):
        Study.model_validate(fields | {"modalities": modalities[:count]})


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
WORDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=6)
LIMITS = st.lists(st.floats(-1e15, 1e15), min_size=2, max_size=2).filter(lambda pair: pair[1] - pair[0] > 1e-9)


ENCODERS = st.sampled_from(["shared", "local"])


@st.composite
def columns_of(draw: st.DrawFn) -> tuple[NumericColumn | CategoricalColumn, ...]:
    columns: list[NumericColumn | CategoricalColumn] = []
    for column in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        if draw(st.booleans()):
            low, high = draw(LIMITS)
            columns.append(NumericColumn(name=column, unit=draw(st.text(max_size=4)), range=(low, high)))
        else:
            categories = tuple(draw(st.lists(WORDS, min_size=1, max_size=4, unique=True)))
            columns.append(CategoricalColumn(name=column, categories=categories))
    return tuple(columns)


@st.composite
def tables(draw: st.DrawFn, name: str) -> TabularModality:
    encoder = draw(ENCODERS)
    return TabularModality(name=name, encoder=encoder, columns=draw(columns_of()) if encoder == "shared" else ())


@st.composite
def sequences(draw: st.DrawFn, name: str) -> SequenceModality:
    longest = draw(st.integers(1, 4096))
    if draw(ENCODERS) == "local":
        return SequenceModality(name=name, encoder="local", longest=longest)
    low, high = draw(LIMITS)
    return SequenceModality(
        name=name,
        encoder="shared",
        columns=draw(columns_of()),
        longest=longest,
        time_unit=draw(WORDS),
        time_range=(low, high),
    )


@st.composite
def embeddings(draw: st.DrawFn, name: str) -> EmbeddingModality:
    if draw(ENCODERS) == "local":
        return EmbeddingModality(name=name, encoder="local")
    low, high = draw(LIMITS)
    return EmbeddingModality(name=name, encoder="shared", size=draw(st.integers(1, 65536)), range=(low, high))


@st.composite
def studies(draw: st.DrawFn) -> Study:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    modalities = tuple(draw(st.one_of(tables(name), sequences(name), embeddings(name))) for name in names)
    sets = draw(st.lists(st.frozensets(st.sampled_from(names), min_size=1), max_size=3, unique=True))
    classes = tuple(draw(st.lists(WORDS, min_size=2, max_size=4, unique=True)))
    return Study(
        name=draw(NAMES),
        label=Label(name=draw(NAMES), classes=classes),
        modalities=modalities,
        combinations=tuple(tuple(sorted(members)) for members in sets),
    )


@given(studies())
@settings(max_examples=40, deadline=None)
def test_text_forms_round_trip(tmp_path_factory: pytest.TempPathFactory, study: Study) -> None:
    assert load(study.to_toml(), tmp_path_factory.mktemp("study")) == study
    again = Study.from_json(study.to_json())
    assert (again, again.to_json()) == (study, study.to_json())


@given(studies(), st.data())
@settings(max_examples=40, deadline=None)
def test_masks_and_names_are_inverse(study: Study, data: st.DataObject) -> None:
    mask = data.draw(st.integers(0, study.full_mask))
    names = study.names_of(mask)
    assert study.mask_of(reversed(names)) == mask
    assert len(names) == mask.bit_count()
    assert study.names_of(study.full_mask) == study.modality_names


def test_foreign_masks_and_names_are_refused(tmp_path: Path) -> None:
    study = load(GOOD, tmp_path)
    with pytest.raises(ValueError, match="no combination"):
        study.names_of(4)
    with pytest.raises(ValueError, match="not in tuple"):
        study.mask_of(["scan"])


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", '{"name": "s", "modality": []}'])
def test_broken_json_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match=r"study \(as received\)"):
        Study.from_json(text)
