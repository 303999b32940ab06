from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.attachments import Attachments
from flexmoe_core.audit_line import Head
from flexmoe_core.errors import MessageError

HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)


HEADS = st.none() | st.builds(Head, st.integers(0, 2**62), HASHES)


@given(HEADS, HEADS)
def test_what_was_attached_arrives(audit: Head | None, ledger: Head | None) -> None:
    attached = Attachments(audit_head=audit, ledger_head=ledger)
    assert Attachments.from_values(attached.to_values()) == attached


@given(
    st.dictionaries(
        st.sampled_from(["audit-count", "audit-hash", "ledger-count", "ledger-hash", "other"]),
        st.none() | st.integers() | st.text(),
    )
)
def test_anything_else_is_refused_in_one_way(values: dict[str, object]) -> None:
    if not values:
        return
    with pytest.raises(MessageError, match="beside the payload"):
        Attachments.from_values(values)


def test_a_signature_covers_both_heads() -> None:
    head, other = Head(3, "a" * 64), Head(4, "b" * 64)
    words = {
        Attachments(audit, b"", ledger).record for audit in (None, head, other) for ledger in (None, head, other)
    }
    assert len(words) == 9


def test_what_was_sealed_comes_back_by_sender() -> None:
    sealed = {"north": b"1" * 94, "south-2": b""}
    beside = Attachments(Head(7, "a" * 64), b"s" * 64, sealed=sealed)
    assert Attachments.from_values(beside.to_values()) == beside
    assert Attachments.from_values(Attachments(sealed=sealed).to_values()).sealed == sealed


@pytest.mark.parametrize("body", ["text", 5, b"x" * 1025])
def test_something_sealed_of_another_kind_is_refused(body: object) -> None:
    with pytest.raises(MessageError, match="sealed of another kind"):
        Attachments.from_values({"sealed-north": body})
