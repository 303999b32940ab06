from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from flexmoe_core.enrollment import Roster
from flexmoe_core.errors import InputError
from server.deployment.certificates import expires
from server.deployment.folder import CoordinatorFolder
from server.deployment.invitation import study_of
from tests.server.deployment.coordinators import NOW, make_folder, settings_of
from tests.server.scripted import STUDY

SECRETS = {"authority.key", "server.key", "superexec.secret"}


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("exists", [False, True])
def test_secrets_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path, umask: int, exists: bool) -> None:
    before = os.umask(umask)
    try:
        if exists:
            (tmp_path / "coordinator").mkdir(mode=0o777)
        folder = make_folder(tmp_path / "coordinator", "north")
    finally:
        os.umask(before)
    assert mode_of(folder.path) == 0o700
    assert {mode_of(path) for path in folder.path.iterdir() if path.is_dir()} == {0o700}
    assert {file.name for file in folder.secrets} == SECRETS
    assert {mode_of(folder.path / name) for name in SECRETS} == {0o600}
    assert (folder.path / "superexec.secret").stat().st_size == 32


def test_every_private_key_is_counted_among_the_secrets(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator", "north", client_certificates=True)
    private = {file for file in folder.path.rglob("*") if file.is_file() and b"PRIVATE" in file.read_bytes()}
    assert {file.name for file in private} == SECRETS - {"superexec.secret"}


def test_what_was_made_can_be_opened(tmp_path: Path) -> None:
    make_folder(tmp_path / "coordinator", port=8443)
    opened = CoordinatorFolder.open(tmp_path / "coordinator")
    assert (opened.settings, study_of(opened), opened.roster) == (settings_of(port=8443), STUDY, Roster())
    assert opened.authority_certificate == opened.authority.certificate


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(InputError, match="is not empty"):
        make_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot hold a coordinator"):
            make_folder(path)


@pytest.mark.parametrize("name", ["my folder", "a;b", "a{b", "a$b", "a'b", 'a"b', "a\\b", "a\nb", "a\x07b"])
def test_a_path_that_nginx_would_misread_is_refused_when_it_is_made_and_when_it_was_moved(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match="cannot stand in nginx's configuration"):
        make_folder(tmp_path / name)
    folder = make_folder(tmp_path / "plain")
    folder.path.rename(tmp_path / name)
    with pytest.raises(InputError, match="cannot stand in nginx's configuration"):
        CoordinatorFolder.open(tmp_path / name)


def test_where_there_is_no_coordinator_there_is_nothing_to_open(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is no coordinator's folder"):
            CoordinatorFolder.open(path)


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_secrets_that_others_may_read_are_named(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "coordinator")
    (folder.path / name).chmod(0o640)
    with pytest.raises(InputError, match=rf"{name}: can be read by others\. Make it private: chmod 600 .*{name}"):
        CoordinatorFolder.open(folder.path)


def test_without_the_authority_s_key_only_signing_ends(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator")
    (folder.path / "authority.key").unlink()
    opened = CoordinatorFolder.open(folder.path)
    assert opened.authority_certificate.startswith(b"-----BEGIN CERTIFICATE")
    with pytest.raises(InputError, match=r"authority\.key: cannot be read: No such file"):
        opened.renew(NOW)


def test_a_renewal_replaces_key_and_certificate(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator")
    before = folder.server
    folder.renew(NOW + timedelta(days=30))
    assert folder.server.key != before.key
    assert expires(folder.server.certificate) - expires(before.certificate) == timedelta(days=30)
    assert mode_of(folder.path / "server.key") == 0o600


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../elsewhere", "a/b", "/tmp/run", "-x", ".x", "a b", "a\n", "n" * 65]
)
def test_a_run_never_leaves_its_folder(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "coordinator")
    with pytest.raises(InputError, match="cannot be the name of a run"):
        folder.run_folder(name)


@pytest.mark.parametrize("name", ["20260301-120000", "first_run", "v1.2"])
def test_names_of_runs(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path / "coordinator")
    assert folder.run_folder(name) == folder.path / "runs" / name
