import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import ErrorCode

from client import guard
from client.guard import Guard, Refused, allowed_bundles

PYPROJECT = b"""
[project]
name = "toy"
version = "0.1.0"
[tool.flwr.app]
publisher = "toy"
[tool.flwr.app.components]
serverapp = "toy.server:app"
clientapp = "toy.client:app"
"""
CLIENT = b"from flwr.clientapp import ClientApp\napp = ClientApp()\n"
BUNDLE = build_fab_from_files({"pyproject.toml": PYPROJECT, "toy/__init__.py": b"", "toy/client.py": CLIENT})[0]
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    monkeypatch.delenv("FLEXMOE_BUNDLE", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "flower").mkdir()
    return tmp_path


def allow(node: Path, digest: str = DIGEST) -> None:
    (node / "allowed_bundles.txt").write_text(f"# ours\n{digest}  # toy\n")


def site_log(node: Path) -> str:
    return (node / "state" / "site.log").read_text()


def test_an_unlisted_bundle_leaves_no_trace_but_words(node: Path) -> None:
    allow(node, "0" * 64)
    with pytest.raises(Refused, match=f"^this bundle is not on the site's list: {DIGEST}$"):
        Guard(node).install(BUNDLE, skip_prompt=True)
    assert list((node / "flower").iterdir()) == []
    assert f"flexmoe-client allow {node} {DIGEST}" in site_log(node)
    assert "FLEXMOE_BUNDLE" not in os.environ


def test_without_a_list_nothing_is_allowed(node: Path) -> None:
    with pytest.raises(Refused):
        Guard(node).install(BUNDLE)
    (node / "allowed_bundles.txt").write_bytes(b"\xff\xfe")
    assert allowed_bundles(node / "allowed_bundles.txt") == frozenset()


def test_the_list_is_read_anew_each_time(node: Path) -> None:
    one = Guard(node)
    allow(node)
    one.install(BUNDLE)
    allow(node, "0" * 64)
    with pytest.raises(Refused):
        one.install(BUNDLE)


def test_an_allowed_bundle_is_unpacked_anew_and_named(node: Path) -> None:
    allow(node)
    first = Guard(node).install(BUNDLE)
    (first / "toy" / "client.py").write_text("raise SystemExit('changed on disk')\n")
    second = Guard(node).install(BUNDLE)
    assert second != first
    assert (second / "toy" / "client.py").read_bytes() == CLIENT
    assert os.environ["FLEXMOE_BUNDLE"] == DIGEST
    assert (node / "flower").stat().st_mode & 0o777 and second.parents[1].stat().st_mode & 0o077 == 0


def test_only_what_was_unpacked_is_loaded(node: Path) -> None:
    allow(node)
    one = Guard(node)
    folder = one.install(BUNDLE)
    load = one.loader(default_app_ref="", app_path=None, multi_app=True)
    assert load("toy/toy", "0.1.0", DIGEST) is not None
    elsewhere = node / f"evil.{DIGEST[:8]}"
    folder.rename(elsewhere)
    for fab_id, version, digest in [
        ("toy/toy", "0.1.0", "1" * 64),
        ("toy/other", "0.1.0", DIGEST),
        ("toy/toy", f"/../../../../{node.name}/evil", DIGEST),
    ]:
        with pytest.raises(Refused, match="another bundle"):
            load(fab_id, version, digest)


def error_of(one: Guard, exception: Exception) -> tuple[int, str | None]:
    try:
        raise exception
    except Exception:
        told = one.error(2, f"<class>:<'{exception}'>")
    return told.code, told.reason


def test_no_text_of_an_exception_leaves_the_site(node: Path) -> None:
    code, reason = error_of(Guard(node), ImportError("/data/hospital: Mrs. Smith"))
    assert reason is not None and code == 2
    told, error_id = reason.rsplit(" ", 1)
    assert told == "the site could not run the bundle; its log has the details under"
    assert f"{error_id} Traceback" in site_log(node) and "Mrs. Smith" in site_log(node)


def test_words_of_our_own_app_and_of_the_guard_pass(node: Path) -> None:
    words = "the site could not answer; its log has the details under 00ff00ff"
    assert error_of(Guard(node), RuntimeError(words)) == (2, words)
    assert error_of(Guard(node), RuntimeError(f"{words} Mrs. Smith"))[1] != f"{words} Mrs. Smith"
    assert error_of(Guard(node), Refused("not listed")) == (ErrorCode.INVALID_FAB, "not listed")


def test_folders_of_killed_processes_go(node: Path) -> None:
    allow(node)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = node / "flower" / f"bundle-{ended.pid}-abc"
    left.mkdir()
    Guard(node).install(BUNDLE)
    assert not left.exists()


def test_it_takes_the_place_of_flowers_functions_or_fails(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = {name: getattr(guard.runtime, name) for name in guard.REPLACED}
    for name, value in original.items():
        monkeypatch.setattr(guard.runtime, name, value)
    Guard(node).take_over()
    assert all(getattr(guard.runtime, name) != value for name, value in original.items())
    monkeypatch.delattr(guard.runtime, "install_from_fab")
    with pytest.raises(AttributeError):
        Guard(node).take_over()


def test_what_stands_alone_imports_none_of_our_packages() -> None:
    for name in ("guard.py", "supernode.py"):
        tree = ast.parse(Path(guard.__file__).with_name(name).read_text())
        roots = {
            node.module.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
        }
        roots |= {
            alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert roots <= sys.stdlib_module_names | {"flwr", "httpx"}
