"""What is said arrives, and what arrives and was never said is refused in one way."""

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from flexmoe_core.errors import MessageError
from flexmoe_core.groups import Group
from flexmoe_core.messages import (
    FinishReply,
    FinishRequest,
    HandshakeReply,
    HandshakeRequest,
    Terms,
    TrainReply,
    TrainRequest,
    decode,
    encode,
    outline,
)
from flexmoe_core.modalities.tabular import CategoricalColumn, NumericColumn, TabularModality
from flexmoe_core.settings import MethodSettings, ModelSettings, paper
from flexmoe_core.study import Label, Study
from flexmoe_core.validation import FrozenModel
from tests.flexmoe_core.cohorts import TINY, table_of

STUDY = Study(
    name="heart",
    label=Label(name="disease", classes=("no", "yes")),
    modalities=(
        TabularModality(name="labs", encoder="local"),
        TabularModality(
            name="ecg",
            encoder="shared",
            columns=(
                NumericColumn(name="rate", unit="1/min", range=(40, 200)),
                CategoricalColumn(name="rhythm", categories=("sinus", "Ärger")),
            ),
        ),
    ),
    combinations=(("labs",), ("labs", "ecg")),
)
TERMS = Terms(
    run="0123456789abcdef" * 2,
    seed=2**62,
    study=STUDY,
    method=MethodSettings(model=ModelSettings(**TINY)),
    local_groups=(Group.HEAD,),
    min_cell=5,
    rounds=4,
)
TABLE = table_of([1, 2], 2)
MESSAGES: list[FrozenModel] = [
    HandshakeRequest(terms=TERMS),
    HandshakeReply(
        site="a",
        declared_patients=None,
        declared_full_modality=True,
        modalities=("labs",),
        patients={"train": 12},
        announced={1: 12, 2**61: 7},
        observed={"labs": 12},
    ),
    TrainRequest(terms=TERMS.model_copy(update={"method": paper()}), table=TABLE, round=3, attempt=2),
    TrainReply(site="a", round=3, attempt=1, loss=0.1 + 0.2, seconds=1e-9),
    FinishRequest(terms=TERMS, table=TABLE, round=0),
    FinishReply(site="a", bundle="ab" * 32),
]
ARRAYS = {
    "layers.0.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "support/b": np.array([1.5]),
    "scalar": np.array(2.5, dtype=np.float32),
    "none": np.zeros((0, 3), np.int64),
}
NUMBERS = numpy_st.arrays(
    dtype=st.sampled_from(["f4", "f8", "i8", "u1", "?", "f2"]), shape=numpy_st.array_shapes(min_dims=0, min_side=0)
)


def sealed(body: bytes) -> bytes:
    """The bytes behind the digest that a message begins with."""
    return hashlib.sha256(body).digest() + body


def with_facts(facts: str) -> bytes:
    return sealed(safetensors.numpy.save({"x": np.zeros(1)}, metadata={"facts": facts}))


def read_or_refuse(data: bytes, expected: type[FrozenModel] = TrainRequest) -> None:
    """Any other error than MessageError fails the test."""
    try:
        decode(data, expected)
    except MessageError as error:
        assert expected.__name__ in str(error)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: FrozenModel) -> None:
    read, arrays = decode(encode(message, ARRAYS), type(message))
    assert read == message
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert (arrays[name].shape, arrays[name].dtype) == (value.shape, value.dtype)
        assert np.array_equal(arrays[name], value)
    assert decode(encode(message), type(message)) == (message, {})


@settings(max_examples=30, deadline=None)
@given(arrays=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), NUMBERS, max_size=3))
def test_any_arrays_arrive(arrays: dict[str, np.ndarray]) -> None:
    arrays.pop("__metadata__", None)
    _, read = decode(encode(MESSAGES[-1], arrays), FinishReply)
    assert {name: (value.shape, value.dtype, value.tobytes()) for name, value in read.items()} == {
        name: (value.shape, value.dtype, value.tobytes()) for name, value in arrays.items()
    }


def test_equal_messages_are_equal_bytes() -> None:
    for message in MESSAGES:
        again = type(message).model_validate_json(message.model_dump_json())
        strided = {name: np.asarray(value, order="F") for name, value in reversed(ARRAYS.items())}
        assert encode(message, ARRAYS) == encode(again, strided)
    first, second = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    replies = [MESSAGES[1].model_copy(update={"observed": observed}) for observed in (first, second)]
    assert encode(replies[0]) == encode(replies[1])


def test_other_messages_are_other_bytes() -> None:
    train = MESSAGES[2]
    changed = [
        encode(train),
        encode(train, ARRAYS),
        encode(train, ARRAYS | {"support/b": np.array([1.25])}),
        encode(train.model_copy(update={"attempt": 3}), ARRAYS),
        encode(train.model_copy(update={"table": table_of([1], 2)}), ARRAYS),
    ]
    assert len({hashlib.sha256(data).digest() for data in changed}) == len(changed)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_of_another_kind_is_refused(message: FrozenModel) -> None:
    for other in MESSAGES:
        if type(other) is not type(message):
            with pytest.raises(MessageError):
                decode(encode(message), type(other))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_refused(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(WHOLE))
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "random"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    match kind:
        case "cut":
            damaged = whole[:at]
        case "flip":
            damaged = whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
        case "insert":
            damaged = whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at:]
        case _:
            damaged = data.draw(st.binary(max_size=60))
    body = whole[32:]
    with pytest.raises(MessageError):
        decode(damaged, TrainRequest)
    read_or_refuse(sealed(damaged[32:]))  # as a sender would who seals nonsense
    read_or_refuse(sealed(body[:at]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(one for key, below in inner for one in paths(below, (*path, key)))]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), replacement=JSON)
def test_facts_with_anything_in_any_place_are_read_or_refused(data: st.DataObject, replacement: object) -> None:
    message = data.draw(st.sampled_from(MESSAGES))
    facts: Any = {type(message).__name__: message.model_dump(mode="json")}
    path = data.draw(st.sampled_from(paths(facts)))
    if path:
        place = facts
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = replacement
    else:
        facts = replacement
    read_or_refuse(with_facts(json.dumps(facts)), type(message))


@pytest.mark.parametrize(
    "facts",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"TrainRequest":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"TrainRequest": ' + "9" * 5000 + "}",
        '{"TrainRequest": {"round": NaN, "table": {"modalities": 1e400}}}',
        '{"TrainRequest": "\\ud800"}',
    ],
)
def test_hostile_facts_are_refused(facts: str) -> None:
    with pytest.raises(MessageError):
        decode(with_facts(facts), TrainRequest)


def with_header(header: bytes, tail: bytes = b"") -> bytes:
    return sealed(struct.pack("<Q", len(header)) + header + tail)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 32,
        sealed(b""),
        sealed(b"\xff" * 8),
        sealed(b"\xff" * 64),
        with_header(b"[" * 100_000),
        with_header(b"[]"),
        with_header(b"\xff\xfe"),
        with_header(b'{"__metadata__": []}'),
        with_header(b'{"__metadata__": {"facts": {}}}'),
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data, TrainRequest)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "F4", "C64", "E8M0", "F6_E2M3", "nonsense"])
def test_numbers_that_numpy_does_not_know_are_refused(dtype: str) -> None:
    valid = json.dumps({"FinishReply": MESSAGES[-1].model_dump(mode="json")})
    header = {
        "__metadata__": {"facts": valid},
        "x": {"dtype": dtype, "shape": [8], "data_offsets": [0, 16]},
    }
    read_or_refuse(with_header(json.dumps(header).encode(), b"\0" * 16), FinishReply)


@pytest.mark.parametrize(
    "change", [{"run": "x"}, {"min_cell": 0}, {"unknown": 1}, {"local_groups": ["nothing"]}, {"study": None}]
)
def test_facts_that_do_not_hold_are_named(change: dict[str, object]) -> None:
    facts = {"HandshakeRequest": {"terms": TERMS.model_dump(mode="json") | change}}
    with pytest.raises(MessageError, match=rf"HandshakeRequest is malformed: terms\.{next(iter(change))}"):
        decode(with_facts(json.dumps(facts)), HandshakeRequest)


WHOLE = [encode(MESSAGES[2]), encode(MESSAGES[2], ARRAYS)]


def test_an_outline_has_the_facts_and_the_sizes_of_the_arrays() -> None:
    arrays = {"weighted/x": np.zeros((3, 2), np.float32), "support/x": np.zeros(1), "empty": np.zeros((0, 4))}
    reply = TrainReply(site="north", round=3, attempt=2, loss=0.5, seconds=1.5)
    found = outline(encode(reply, arrays))
    assert (found.kind, found.facts) == ("TrainReply", reply.model_dump())
    assert found.arrays == {"weighted/x": 24, "support/x": 8, "empty": 0}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_bytes_that_are_no_message_have_no_outline(data: bytes, begins_well: bool) -> None:
    good = encode(FinishReply(site="north", bundle="b" * 64))
    with pytest.raises(MessageError):
        outline(good[: 32 + 8] + data if begins_well else data)


@pytest.mark.parametrize("header", ["[]", "{}", '{"__metadata__":{"facts":"[]"}}', '{"__metadata__":{"facts":"{}"}}'])
def test_a_header_of_something_else_has_no_outline(header: str) -> None:
    with pytest.raises(MessageError):
        outline(bytes(32) + struct.pack("<Q", len(header)) + header.encode())
