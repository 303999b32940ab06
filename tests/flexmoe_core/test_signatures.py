from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from flexmoe_core.errors import InputError
from flexmoe_core.signatures import Statement, digest_of, read_identity_key
from tests.flexmoe_core.hospital_keys import public_line

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
LINE = public_line(KEY)
STATEMENT = Statement("north", "train", digest_of(b"request"), digest_of(b"reply"), f"3 {'a' * 64}")
SIGNATURE = STATEMENT.sign(KEY)

TEXTS = st.text(max_size=80)


def openssh(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def test_a_digest_is_the_sha256() -> None:
    assert digest_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_what_the_owner_signed_passes() -> None:
    assert len(SIGNATURE) == 64
    assert STATEMENT.is_signed(SIGNATURE, LINE)


@given(st.sampled_from(["site", "question", "request", "reply", "record"]), TEXTS)
def test_any_other_field_fails(field: str, text: str) -> None:
    other = replace(STATEMENT, **{field: text})
    assert other.is_signed(SIGNATURE, LINE) == (other == STATEMENT)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_a_statement_is_told_from_every_other(site: str, question: str, request: str, reply: str) -> None:
    made = Statement(site, question, digest_of(request.encode("utf-8", "replace")), digest_of(b"reply"), "")
    signature = made.sign(KEY)
    assert made.is_signed(signature, LINE)
    for swapped in (
        replace(made, site=question, question=site),
        replace(made, request=made.reply, reply=made.request),
        replace(made, site=made.site + made.question, question=""),
    ):
        assert swapped.is_signed(signature, LINE) == (swapped == made)


@given(st.integers(0, 511))
def test_any_other_bit_of_the_signature_fails(place: int) -> None:
    changed = bytearray(SIGNATURE)
    changed[place // 8] ^= 1 << place % 8
    assert not STATEMENT.is_signed(bytes(changed), LINE)


@given(st.binary(max_size=200))
def test_other_bytes_of_any_length_fail_without_an_exception(signature: bytes) -> None:
    assert not STATEMENT.is_signed(signature, LINE)


@pytest.mark.parametrize("signature", [b"", SIGNATURE[:-1], SIGNATURE + b"\0", SIGNATURE * 2])
def test_a_signature_of_another_length_fails(signature: bytes) -> None:
    assert not STATEMENT.is_signed(signature, LINE)


def test_another_key_fails() -> None:
    assert not STATEMENT.is_signed(SIGNATURE, public_line(Ed25519PrivateKey.generate()))


def test_the_purpose_is_part_of_what_is_signed() -> None:
    bare = KEY.sign(STATEMENT._text().partition(b"\n")[2])
    assert not STATEMENT.is_signed(bare, LINE)


def test_a_key_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "identity_key").write_bytes(openssh(KEY))
    assert STATEMENT.is_signed(STATEMENT.sign(read_identity_key(tmp_path / "identity_key")), LINE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        openssh(KEY)[:-60],
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
        openssh(ec.generate_private_key(ec.SECP384R1())),
        LINE.encode(),
        None,
    ],
)
def test_what_is_no_open_ed25519_key_is_refused_in_words(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "identity_key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match="is not a readable Ed25519 key without a password"):
        read_identity_key(file)
