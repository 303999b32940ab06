"""From a settings file to a validated model, or to every problem in it, each with its place and its remedy.

A problem shows the keys and names that a file declares, never a value that was read.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from flexmoe_core.errors import InputError, Problem

Location = tuple[int | str, ...]


class FrozenModel(BaseModel):
    """Base of all settings: immutable, and no key is accepted that no field asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


class Finding(NamedTuple):
    """What a validator finds wrong, what to do about it, and the dotted place below the validated value."""

    what: str
    remedy: str
    place: str = ""


class Findings(ValueError):
    """Raised by a validator to report several findings at once."""

    def __init__(self, *findings: Finding) -> None:
        self.findings = findings
        super().__init__("; ".join(finding.what for finding in findings))


def raise_if_any(findings: Iterable[Finding]) -> None:
    """End a validator: raise ``Findings`` unless there are none."""
    found = tuple(findings)
    if found:
        raise Findings(*found)


def _safe_name(name: str) -> str:
    if len(name) > 64 or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise Findings(
            Finding("is not a safe name", "Use a letter, then letters, digits, '_' and '-', 64 characters at most.")
        )
    return name


SafeName = Annotated[str, AfterValidator(_safe_name)]
"""A name that can stand in a file name and in a parameter's name."""


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The valid word that is closest in spelling, or None when none is close."""
    by_folded = {option.casefold(): option for option in valid}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return by_folded[close[0]] if close else None


def suggestion(word: str, valid: Collection[str]) -> str:
    """The remedy for a word that is not among the valid ones."""
    closest = nearest(word, valid)
    if closest is not None:
        return f"Did you mean '{closest}'?"
    return f"Valid here: {', '.join(valid)}." if valid else "Remove it."


def repeated(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, each once, in order."""
    return [name for place, name in enumerate(names) if names.index(name) == place and names.count(name) > 1]


def problems_of(error: ValidationError, model: type[BaseModel], data: object, file: str) -> list[Problem]:
    """Every problem in ``data``, which failed to become a ``model``; ``file`` is where the data stand."""
    problems = []
    for detail in error.errors(include_url=False, include_input=False):
        place = _place(detail, data)
        for finding in _findings(detail, model):
            where = ".".join(filter(None, (place, finding.place)))
            problems.append(Problem(file, where, finding.what, finding.remedy))
    return problems


def validate(data: object, model: type[ModelT], file: str, place: str = "") -> ModelT:
    """``data`` as a ``model``, ``place`` being where in the file they stand. Raises InputError with every problem."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = problems_of(error, model, data, file)
        raise InputError([replace(one, place=".".join(filter(None, (place, one.place)))) for one in found]) from None


def read_toml(path: Path, model: type[ModelT]) -> ModelT:
    """The TOML file at ``path`` as a ``model``. Raises InputError with every problem."""
    return validate(parse_toml(path), model, str(path))


def parse_toml(path: Path) -> dict[str, Any]:
    """The file's tables, whatever they hold. Raises InputError when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        problem = Problem(str(path), "", "the file does not exist", "Create it, or correct the path.")
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
        problem = Problem(str(path), "", f"cannot be read: {reason}", "Correct the path or its permissions.")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = Problem(str(path), f"line {line}", "is not UTF-8 text", "Save the file as UTF-8.")
    except tomllib.TOMLDecodeError as error:
        position = re.search(r"\(at (line \d+, column \d+|end of document)\)$", str(error))
        place = position.group(1) if position else ""
        problem = Problem(str(path), place, "is not valid TOML", "Correct what stands at or before this place.")
    except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of brackets
        problem = Problem(str(path), "", "is not valid TOML", "Remove the endless number or nesting.")
    raise InputError([problem])


def _place(detail: ErrorDetails, data: object) -> str:
    """The dotted place of an error as the file shows it: list entries by their name, no tags of unions."""
    names: list[str] = []
    for part in detail["loc"]:
        if isinstance(data, dict) and part in data:
            data = data[part]
            names.append(str(part))
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
            name = data.get("name") if isinstance(data, dict) else None
            names.append(name if isinstance(name, str) and name else f"#{part + 1}")
    if detail["type"] == "missing":
        key = detail["loc"][-1]
        names.append(f"#{key + 1}" if isinstance(key, int) else key)
    return ".".join(names)


def _findings(detail: ErrorDetails, model: type[BaseModel]) -> Sequence[Finding]:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error" and isinstance(context.get("error"), Findings):
        return tuple(context["error"].findings)
    match kind:
        case "missing":
            return [Finding("is missing", "Add it.")]
        case "extra_forbidden":
            valid = _keys_at(model, detail["loc"][:-1])
            return [Finding("is not a known key", suggestion(str(detail["loc"][-1]), valid))]
        case "model_type" | "model_attributes_type" | "dict_type":
            what = "should be a table"
        case "tuple_type" | "list_type":
            what = "should be a list"
        case "too_short":
            what = f"should have at least {context['min_length']} entries"
        case "too_long":
            what = f"should have at most {context['max_length']} entries"
        case "union_tag_not_found":
            return [Finding("is missing", "Add it.", context["discriminator"].strip("'"))]
        case "union_tag_invalid":
            what, tag = f"should be one of these: {context['expected_tags']}", context["discriminator"].strip("'")
            return [Finding(what, "Correct it.", tag)]
        case _:
            what = detail["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    return [Finding(what, "Correct it.")]


def _keys_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that the model accepts at a location of a pydantic error."""
    models = {model}
    for part in location:
        models = _models_below(models, part)
    fields = [pair for found in models for pair in found.model_fields.items()]
    return sorted({field.alias or name for name, field in fields})


def _models_below(models: set[type[BaseModel]], part: int | str) -> set[type[BaseModel]]:
    """One step down: into a field; to the members of a union that bear a tag; through a list or mapping."""
    fields = [(found, pair) for found in models for pair in found.model_fields.items()]
    nested = [_models_in(field.annotation) for _, (name, field) in fields if part in (name, field.alias)]
    tagged = {found for found, (_, field) in fields if part in get_args(field.annotation)}
    return set().union(*nested) or tagged or models


def _models_in(annotation: object) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for argument in get_args(annotation) for model in _models_in(argument)}
