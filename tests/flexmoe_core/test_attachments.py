from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.attachments import Attachments
from flexmoe_core.audit_line import Head
from flexmoe_core.errors import MessageError

HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(st.none() | st.builds(Head, st.integers(0, 2**62), HASHES))
def test_what_was_attached_arrives(head: Head | None) -> None:
    attached = Attachments(audit_head=head)
    assert Attachments.from_values(attached.to_values()) == attached


@given(
    st.dictionaries(st.sampled_from(["audit-count", "audit-hash", "other"]), st.none() | st.integers() | st.text())
)
def test_anything_else_is_refused_in_one_way(values: dict[str, object]) -> None:
    if not values:
        return
    with pytest.raises(MessageError, match="beside the payload"):
        Attachments.from_values(values)


def test_what_was_sealed_comes_back_by_sender() -> None:
    sealed = {"north": b"1" * 94, "south-2": b""}
    beside = Attachments(Head(7, "a" * 64), b"s" * 64, sealed)
    assert Attachments.from_values(beside.to_values()) == beside
    assert Attachments.from_values(Attachments(sealed=sealed).to_values()).sealed == sealed


@pytest.mark.parametrize("body", ["text", 5, b"x" * 1025])
def test_something_sealed_of_another_kind_is_refused(body: object) -> None:
    with pytest.raises(MessageError, match="sealed of another kind"):
        Attachments.from_values({"sealed-north": body})
