from pathlib import Path

import pytest

from client.allowed_bundles import ALLOWED_FILE, allow, listed, parse_hash, remove
from client.guard import allowed_bundles
from client.own_bundle import own_bundle
from flexmoe_core.errors import InputError

ONE, TWO = "1" * 64, "a" * 64


def test_what_is_allowed_can_be_listed_and_removed_and_the_guard_agrees(tmp_path: Path) -> None:
    assert listed(tmp_path) == {}
    assert allow(tmp_path, ONE, "first") and allow(tmp_path, TWO, "second")
    assert not allow(tmp_path, ONE, "again")
    assert listed(tmp_path) == {ONE: "first", TWO: "second"}
    assert allowed_bundles(tmp_path / ALLOWED_FILE) == {ONE, TWO}
    remove(tmp_path, ONE)
    assert listed(tmp_path) == {TWO: "second"}
    assert (tmp_path / ALLOWED_FILE).read_text().startswith("# The bundles of code")
    assert (tmp_path / ALLOWED_FILE).stat().st_mode & 0o777 == 0o600


def test_removing_what_is_not_there_and_a_line_that_is_no_hash_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not list"):
        remove(tmp_path, ONE)
    (tmp_path / ALLOWED_FILE).write_text(f"{ONE}\nabc\n")
    with pytest.raises(InputError, match="line 2: is not a SHA-256"):
        listed(tmp_path)


def test_hashes_are_hexadecimal() -> None:
    assert parse_hash("A" * 64) == TWO
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        parse_hash("a" * 63)


def test_the_bundle_of_the_same_code_has_the_same_hash() -> None:
    assert own_bundle() == own_bundle()
