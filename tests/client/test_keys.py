from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from client.cli import main
from client.keys import ENROLLMENT, IDENTITY_KEY, NODE_KEY, TLS_KEY, make_keys
from flexmoe_core.enrollment import Enrollment, fingerprint, read_public_file
from flexmoe_core.errors import InputError
from flexmoe_core.signatures import Statement, digest_of, read_identity_key
from tests.flexmoe_core.hospital_keys import public_line

PRIVATE = (NODE_KEY, IDENTITY_KEY, TLS_KEY)


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("exists", [False, True])
def test_private_keys_are_for_their_owner_alone(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "node"
    if exists:
        folder.mkdir(mode=0o777)
    make_keys(folder, "north")
    assert mode_of(folder) == 0o700
    assert {file.name: mode_of(file) for file in folder.iterdir()} == {
        **dict.fromkeys(PRIVATE, 0o600),
        ENROLLMENT: 0o644,
    }


def test_public_halves_are_those_of_the_private_keys(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "node", "north-1_b")
    assert read_public_file(Enrollment, tmp_path / "node" / ENROLLMENT) == made
    node = load_ssh_private_key((tmp_path / "node" / NODE_KEY).read_bytes(), None)
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert public_line(node) == made.node_key
    statement = Statement(made.site, "train", digest_of(b"a"), digest_of(b"b"), "")
    identity = read_identity_key(tmp_path / "node" / IDENTITY_KEY)
    assert statement.is_signed(statement.sign(identity), made.identity_key)
    tls = load_pem_private_key((tmp_path / "node" / TLS_KEY).read_bytes(), None)
    request = x509.load_pem_x509_csr(made.certificate_request.encode())
    assert request.public_key() == tls.public_key()
    assert request.subject.rfc4514_string() == "CN=north-1_b"


def test_keys_are_never_made_twice(tmp_path: Path) -> None:
    assert make_keys(tmp_path / "a", "north").node_key != make_keys(tmp_path / "b", "north").node_key


@pytest.mark.parametrize("name", [*PRIVATE, ENROLLMENT])
def test_keys_that_are_there_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("kept")
    with pytest.raises(InputError, match="holds keys already"):
        make_keys(tmp_path, "north")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "kept")]


@pytest.mark.parametrize("site", ["", "north 1", "../north", "1north", "n" * 65, "Nörd", "\udcff", "a\nb"])
def test_a_name_that_cannot_stand_in_a_file_name_makes_no_keys(tmp_path: Path, site: str) -> None:
    with pytest.raises(InputError, match="site: is not a safe name"):
        make_keys(tmp_path / "node", site)
    assert not (tmp_path / "node").exists()


def test_a_folder_that_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match="cannot hold keys"):
            make_keys(folder, "north")


def test_keygen_shows_what_to_send_and_what_to_compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flexmoe-client", "keygen", str(tmp_path / "node"), "--site", "north"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    made = read_public_file(Enrollment, tmp_path / "node" / ENROLLMENT)
    shown = capsys.readouterr().out
    assert str(tmp_path / "node" / ENROLLMENT) in shown
    assert fingerprint(made.node_key) in shown
    assert fingerprint(made.identity_key) in shown
    assert "PRIVATE" not in shown
