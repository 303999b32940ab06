from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, Field, ValidationError

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import (
    Finding,
    Findings,
    FrozenModel,
    SafeName,
    nearest,
    raise_if_any,
    read_toml,
    repeated,
    suggestion,
    validate,
)

SECRET = "patient-value-8731"


class Cat(FrozenModel):
    type: Literal["cat"]
    lives: int


class Dog(FrozenModel):
    type: Literal["dog"]
    tricks: tuple[str, ...] = ()


def refuse_two(words: tuple[str, ...]) -> tuple[str, ...]:
    raise_if_any(Finding(f"has bad word {place}", "Drop it.", f"#{place}") for place in range(len(words)))
    return words


class House(FrozenModel):
    name: SafeName
    floors: int = 1
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="type")], ...] = Field(default=(), alias="pet")
    rooms: dict[str, Cat] = Field(default_factory=dict)
    words: Annotated[tuple[str, ...], AfterValidator(refuse_two)] = ()


def problems(data: object) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        validate(data, House, "house.toml")
    return list(caught.value.problems)


def test_all_problems_come_at_once_with_file_place_and_remedy() -> None:
    found = problems({"name": "a b", "florrs": 2, "pet": [{"type": "cat", "name": "Tom", "live": 9}]})
    assert {problem.file for problem in found} == {"house.toml"}
    assert {(problem.place, problem.what) for problem in found} == {
        ("name", "is not a safe name"),
        ("florrs", "is not a known key"),
        ("pet.Tom.lives", "is missing"),
        ("pet.Tom.live", "is not a known key"),
        ("pet.Tom.name", "is not a known key"),
    }
    assert all(problem.remedy for problem in found)


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ({"name": "a", "florrs": 2}, "Did you mean 'floors'?"),
        ({"name": "a", "zzz": 2}, "Valid here: floors, name, pet, rooms, words."),
        ({"name": "a", "pet": [{"type": "dog", "trick": []}]}, "Did you mean 'tricks'?"),
        ({"name": "a", "pet": [{"type": "dog", "live": 9}]}, "Valid here: tricks, type."),
        ({"name": "a", "rooms": {"hall": {"type": "cat", "lives": 1, "TYPO": 1}}}, "Did you mean 'type'?"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one_at_its_place(data: object, remedy: str) -> None:
    assert [problem.remedy for problem in problems(data)] == [remedy]


def test_places_count_from_one_and_hide_the_tags_of_unions() -> None:
    found = problems({"name": "a", "pet": [{"type": "cat", "lives": 1}, {"type": "cat", "lives": "x"}]})
    assert [problem.place for problem in found] == ["pet.#2.lives"]


def test_a_validator_may_report_several_findings() -> None:
    found = problems({"name": "a", "words": ["x", "y"]})
    assert [(problem.place, problem.what) for problem in found] == [
        ("words.#0", "has bad word 0"),
        ("words.#1", "has bad word 1"),
    ]


@pytest.mark.parametrize(
    "data",
    [
        {"name": SECRET + "!"},
        {"name": "a", "floors": SECRET},
        {"name": "a", "pet": SECRET},
        {"name": "a", "pet": [{"type": SECRET}]},
        {"name": "a", "rooms": [SECRET]},
    ],
)
def test_values_are_never_shown(data: object) -> None:
    found = problems(data)
    assert len(found) == 1
    assert SECRET not in str(found[0])


@pytest.mark.parametrize("field", ["name", "floors"])
def test_models_are_immutable(field: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(House(name="a"), field, "b")


def test_findings_read_as_one_message() -> None:
    assert str(Findings(Finding("is odd", "Even it."), Finding("is late", "Hurry."))) == "is odd; is late"


def test_words() -> None:
    assert nearest("Serum", ["serum_chol", "SERUM_"]) == "SERUM_"
    assert nearest("x", ["labs"]) is None
    assert suggestion("x", ["labs", "scan"]) == "Valid here: labs, scan."
    assert suggestion("x", []) == "Remove it."
    assert repeated(["a", "b", "a", "a", "b", "c"]) == ["a", "b"]


def test_toml_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "house.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "a"\n')
    assert read_toml(path, House) == House(name="a")


@pytest.mark.parametrize(
    ("content", "place", "what"),
    [
        (b'name = "a"\nfloors = = 2', "line 2, column 10", "is not valid TOML"),
        (b'name = "a"\n# caf\xe9', "line 2", "is not UTF-8 text"),
        (b"x = " + b"[" * 5000, "", "is not valid TOML"),
        (b"floors = " + b"9" * 5000, "", "is not valid TOML"),
        (None, "", "the file does not exist"),
    ],
)
def test_unreadable_toml(tmp_path: Path, content: bytes | None, place: str, what: str) -> None:
    path = tmp_path / "house.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_toml(path, House)
    (problem,) = caught.value.problems
    assert (problem.file, problem.place, problem.what) == (str(path), place, what)


def test_a_folder_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path, House)


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "pet", "rooms", "type", "lives", "words", "cat"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(TREES)
@settings(max_examples=150, deadline=None)
def test_any_data_is_a_house_or_a_list_of_problems(data: object) -> None:
    try:
        assert isinstance(validate(data, House, "house.toml"), House)
    except InputError as error:
        assert error.problems
