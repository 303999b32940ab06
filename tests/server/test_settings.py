from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flexmoe_core.errors import InputError, Problem
from flexmoe_core.groups import Group
from flexmoe_core.settings import PRESETS, MethodSettings, paper
from server.settings import RunSettings, load_settings, settings_with


def loaded(settings: RunSettings, folder: Path) -> RunSettings:
    (folder / "config.toml").write_text(settings.to_toml(), encoding="utf-8")
    return load_settings(folder / "config.toml")


def problems(*overrides: str, preset: str = "small") -> tuple[Problem, ...]:
    with pytest.raises(InputError) as caught:
        settings_with(overrides, preset)
    return caught.value.problems


def value_at(settings: RunSettings, key: str) -> object:
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested dictionary."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


DEFAULTS = dict(leaves(RunSettings().model_dump(mode="json")))
NUMBERS = [key for key, value in DEFAULTS.items() if isinstance(value, int | float)] + [
    "federation.optimizer.learning_rate"
]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_from_its_file(preset: str, tmp_path: Path) -> None:
    settings = settings_with([], preset, seed=7)
    assert settings.method == PRESETS[preset]()
    assert loaded(settings, tmp_path) == settings


def test_the_file_says_every_setting_that_has_a_value(tmp_path: Path) -> None:
    written = dict(leaves(tomllib.loads(RunSettings().to_toml())))
    assert written == {key: value for key, value in DEFAULTS.items() if value is not None}


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    assert load_settings(tmp_path / "config.toml") == RunSettings() == settings_with([])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=3", 3),
        ("federation.rounds = 7", 7),
        ("federation.deadline_s=2.5", 2.5),
        ("federation.deadline_s=10", 10.0),
        ("federation.optimizer.name=adam", "adam"),
        ('federation.optimizer.name="yogi"', "yogi"),
        ("federation.optimizer.learning_rate=1e-2", 0.01),
        ("federation.aggregation.rule=norm-bounded", "norm-bounded"),
        ("federation.limits.max_norm=inf", float("inf")),
        ('federation.local_groups=["head", "router"]', (Group.HEAD, Group.ROUTER)),
        ("method.model.bank=zero", "zero"),
        ("method.model.width=64", 64),
        ("method.curriculum.generalize_rounds=0", 0),
    ],
)
def test_an_override_of_each_type_arrives_and_stays_in_the_file(override: str, value: object, tmp_path: Path) -> None:
    settings = settings_with([override])
    assert value_at(settings, override.partition("=")[0].strip()) == value
    assert loaded(settings, tmp_path) == settings


def test_the_last_of_two_overrides_counts() -> None:
    assert settings_with(["federation.rounds=3", "federation.rounds=4"]).federation.rounds == 4


def test_a_table_can_be_set_as_a_whole() -> None:
    settings = settings_with(['federation.optimizer={name="adam", beta_1=0.5}'])
    assert (settings.federation.optimizer.name, settings.federation.optimizer.beta_1) == ("adam", 0.5)


def test_overrides_change_the_preset_that_was_chosen() -> None:
    expected = paper().model_copy(update={"model": paper().model.model_copy(update={"experts": 32})})
    assert settings_with(["method.model.experts=32"], "paper").method == expected


@pytest.mark.parametrize(
    ("override", "place", "words"),
    [
        ("federation.round=3", "federation.round", "Did you mean 'rounds'?"),
        ("method.model.widht=64", "method.model.widht", "Did you mean 'width'?"),
        ("federation.optimizer.beta1=0.5", "federation.optimizer.beta1", "Did you mean 'beta_1'?"),
        ("sead=3", "sead", "Did you mean 'seed'?"),
        ("zzz=3", "zzz", "Valid here: federation, method, privacy, seed."),
        ("federation.local_groups=head", "federation.local_groups", "should be a list"),
        ('federation.local_groups=["heads"]', "federation.local_groups.#1", "'head'"),
        ("federation.optimizer.name=sgd", "federation.optimizer.name", "'avg'"),
        ("method.model.width=wide", "method.model.width", "should be a valid integer"),
        ("method.model.width=9", "method.model.width", "multiple of 8"),
        ("method.model.active_experts=9", "method.model", "active_experts must not exceed experts"),
        ("method.model=3", "method.model", "sets a key below a value"),
        ("seed.x=3", "seed", "should be a valid integer"),
        ("nonsense", "nonsense", "is not of the form key=value"),
        ("=3", "=3", "is not of the form key=value"),
        ("seed=", "seed", "should be a valid integer"),
        ("seed=" + "9" * 5000, "seed", "exceeded maximum size"),
        ("seed=" + "[" * 5000, "seed", "should be"),
    ],
)
def test_a_wrong_override_is_named_with_its_remedy(override: str, place: str, words: str) -> None:
    (problem,) = problems(override)
    assert (problem.file, problem.place) == ("--set", place)
    assert words in str(problem)


def test_an_unknown_preset_is_named_with_the_nearest() -> None:
    (problem,) = problems(preset="papre")
    assert str(problem) == "--preset, papre: is not a known preset. Did you mean 'paper'?"


def test_all_problems_come_at_once() -> None:
    wrong = problems("sead=1", "nonsense", "federation.rounds=0", "method.model.width.x=1", "seed=-1", preset="papre")
    assert {problem.place for problem in wrong} == {
        "papre",
        "nonsense",
        "method.model.width.x",
        "federation.rounds",
        "seed",
        "sead",
    }


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_lower_bound(key: str) -> None:
    assert [problem.place for problem in problems(f"{key}=-1")] == [key]
    assert [problem.place for problem in problems(f"{key}=nan")] == [key]


@pytest.mark.parametrize(
    "override",
    [
        "seed=9223372036854775808",
        "federation.rounds=0",
        "federation.quorum=0",
        "federation.min_aggregated=1.1",
        "federation.deadline_s=0",
        "federation.deadline_s=inf",
        "federation.min_cell=0",
        "federation.averaging=1",
        "federation.optimizer.beta_2=1",
        "federation.optimizer.learning_rate=inf",
        "method.model.dropout=1",
        "method.model.width=0",
        "method.training.learning_rate=0",
        "method.training.batch_size=0",
        "method.curriculum.min_full=0",
        "method.losses.rehearsal=inf",
        "method.site.intercept=inf",
    ],
)
def test_limits_that_make_no_sense_are_refused(override: str) -> None:
    assert [problem.place for problem in problems(override)] == [override.partition("=")[0]]


def test_problems_in_a_file_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = -1\n[federation]\nround = 3\n")
    with pytest.raises(InputError) as caught:
        load_settings(tmp_path / "config.toml")
    assert [(one.file, one.place) for one in caught.value.problems] == [
        (str(tmp_path / "config.toml"), "seed"),
        (str(tmp_path / "config.toml"), "federation.round"),
    ]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=20) | st.sampled_from(["federation.", "method.model.", "=", "seed=1"]), max_size=4))
def test_no_override_is_an_exception_of_another_kind(overrides: list[str]) -> None:
    try:
        settings_with(overrides)
    except InputError as error:
        assert error.problems


def test_settings_cannot_change_after_they_were_checked() -> None:
    def models(model: BaseModel) -> Iterator[BaseModel]:
        yield model
        for value in dict(model).values():
            if isinstance(value, BaseModel):
                yield from models(value)

    found = list(models(RunSettings(method=MethodSettings())))
    assert len(found) == 13
    assert all(model.model_config.get("frozen") and model.model_config.get("extra") == "forbid" for model in found)
