import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.tables import LineProblems, Table, canonical, read_table
from flexmoe_core.errors import InputError, Problem

SECRET = "8731-secret"


def read(path: Path, *columns: str, rows: list[int] | None = None) -> Table:
    return read_table(path, path.name, columns, rows)


def problem_of(path: Path, *columns: str) -> Problem:
    with pytest.raises(InputError) as caught:
        read(path, *columns)
    (problem,) = caught.value.problems
    assert SECRET not in str(problem)
    return problem


def csv_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_cells_are_stripped_text_with_the_line_they_begin_on(tmp_path: Path) -> None:
    text = '\ufeffid , x,note\r\n\r\np1, 1.5 ,"two\r\nlines"\r\n,,\r\np2,,"a, b"\r\n'
    table = read(csv_file(tmp_path, text), "id", "x", "absent")
    assert table.header == ("id", "x", "note")
    assert table.lines == (3, 6)
    assert table.cells == {"id": ["p1", "p2"], "x": ["1.5", ""]}


def test_only_the_rows_asked_for_are_kept(tmp_path: Path) -> None:
    table = read(csv_file(tmp_path, "id\na\n\nb\nc\n"), "id", rows=[1, 2])
    assert (table.lines, table.cells["id"]) == ((4, 5), ["b", "c"])


@pytest.mark.parametrize(
    ("content", "place", "what"),
    [
        ("", "", "is empty"),
        (f"id,x\n1,2\n3\n1,2,{SECRET}\n", "lines 3, 4", "has more or fewer cells than the header"),
        (f'id,x\n1,"2\n3,{SECRET}', "line 2", "has a quote that is not closed, or a cell that is too long"),
        (f"id,x,id\n1,2,{SECRET}\n", "header", "columns 1 and 3 have the same name"),
        (f"{SECRET},{SECRET}\n", "header", "columns 1 and 2 have the same name"),
        (b"id,x\n1,2\n3,caf\xe9\n", "line 3", "is not UTF-8 text"),
        ("id,x\n1,2\n".encode("utf-16"), "line 1", "is not UTF-8 text"),
    ],
)
def test_broken_csv(tmp_path: Path, content: str | bytes, place: str, what: str) -> None:
    problem = problem_of(csv_file(tmp_path, content), "id", "x")
    assert (problem.file, problem.place, problem.what) == ("table.csv", place, what)


def test_parquet_cells_read_as_csv_would_spell_them(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    columns = {
        "float": pa.array([1.0, 2.5, None, float("nan")]),
        "int": pa.array([1, None, 3, 4]),
        "bool": pa.array([True, False, None, True]),
        "text": pa.array([" a ", "", None, "7"]).dictionary_encode(),
        "date": pa.array([datetime.date(2020, 1, 2)] * 4),
        "decimal": pa.array([Decimal("1.50")] * 4),
        "struct": pa.array([{"a": 1}] * 4),
    }
    pq.write_table(pa.table(columns), path)
    table = read(path, "float", "int", "bool", "text", "date", "decimal")
    assert table.cells == {
        "float": ["1", "2.5", "", "nan"],
        "int": ["1", "", "3", "4"],
        "bool": ["true", "false", "", "true"],
        "text": ["a", "", "", "7"],
        "date": ["2020-01-02"] * 4,
        "decimal": ["1.50"] * 4,
    }
    assert (table.unit, table.lines) == ("row", (1, 2, 3, 4))
    assert read(path, "int", rows=[2]).cells == {"int": ["3"]}
    problem = problem_of(path, "struct")
    assert (problem.place, problem.what) == ("column struct", "holds neither numbers nor text")


@pytest.mark.parametrize("keep", [0, 3, 40, -9])
def test_truncated_parquet(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": [SECRET] * 9}), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "cannot be read as Parquet" in problem_of(path, "id").what


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "b.csv").mkdir()
    assert problem_of(tmp_path / "a.xlsx").what == "is neither .csv nor .parquet"
    assert "cannot be read" in problem_of(tmp_path / "b.csv").what


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("id,Serum_Chol", "Column 2 of the file has a similar name"),
        ("id;serum;x", "Separate the columns by commas"),
        ("id,x", "Add the column to the file"),
    ],
)
def test_an_absent_column_comes_with_a_hint(tmp_path: Path, header: str, hint: str) -> None:
    problem = read(csv_file(tmp_path, header + "\n"), "id").absent("serum_chol", "site.toml")
    assert problem.what == "has no column 'serum_chol'"
    assert problem.remedy == f"{hint}, or correct site.toml."


def test_lines_of_one_sort_are_one_problem() -> None:
    lines = LineProblems("labs.csv", "line")
    for line in (9, 2, 3, 4, 5, 6, 7):
        lines.add(line, "chol", "is not a number", "Correct it.")
    lines.add(4, "chol", "is too large", "Correct it.")
    lines.add(5, "", "is ragged", "Quote it.")
    assert lines.problems() == [
        Problem("labs.csv", "column chol, lines 2, 3, 4, 5, 6 and 2 more lines", "is not a number", "Correct it."),
        Problem("labs.csv", "column chol, line 4", "is too large", "Correct it."),
        Problem("labs.csv", "line 5", "is ragged", "Quote it."),
    ]


def test_spellings_of_a_number_are_one_cell_and_text_is_itself() -> None:
    assert len({canonical(cell) for cell in ("1", "1.0", "+1", "1e0", "01")}) == 1
    assert len({canonical(cell) for cell in ("1", "-1", "1.5", "1_0", "one", "One")}) == 6
    assert canonical("NaN") == canonical("nan")


@given(st.binary(max_size=60) | st.text('",\n\r\ta1é\x00', max_size=40).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_table_or_a_problem(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    try:
        table = read(csv_file(tmp_path_factory.mktemp("csv"), content), "a", "1")
    except InputError as error:
        assert error.problems
    else:
        assert all(len(cells) == len(table) for cells in table.cells.values())
