"""The process that stands by, and the program that asks it for copies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.standby import with_this_parent

CLIENT = Path(__file__).parents[2] / "client"


def launch(node: Path, guard: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", str(CLIENT / "launch.py"), str(node), str(guard), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A node folder in which a process stands by."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "run").mkdir(mode=0o700)
    with (folder / "standby.log").open("wb") as log:
        command = [sys.executable, "-P", str(CLIENT / "standby.py"), str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: "ready" in said(folder))
        yield folder
        assert process.poll() is None, said(folder)
    finally:
        process.kill()
        process.wait()


def said(node: Path) -> str:
    return (node / "standby.log").read_text()


def until(ready: object, patience_s: float = 60.0) -> None:
    assert callable(ready)
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_copy_serves_each_message_with_its_arguments(node: Path) -> None:
    for number in range(2):
        before = said(node).count("Run a Flower ClientApp")
        done = launch(node, Path("/nowhere"), "--help")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), number
        until(lambda before=before: said(node).count("Run a Flower ClientApp") > before)


def test_a_copy_is_there_long_before_a_new_process_would_be(node: Path) -> None:
    started = time.monotonic()
    launch(node, Path("/nowhere"), "--help")
    until(lambda: "Run a Flower ClientApp" in said(node))
    fresh = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    assert fresh - started < time.monotonic() - fresh


@pytest.mark.parametrize("request_bytes", [b"", b"not json", b"{", b"\xff\xfe"])
def test_nonsense_is_not_served_and_harms_nobody(node: Path, request_bytes: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(node / "run" / "standby.sock"))
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert launch(node, Path("/nowhere"), "--help").returncode == 0


def test_the_socket_is_in_a_folder_of_its_owner(node: Path) -> None:
    assert (node / "run" / "standby.sock").is_socket()
    assert (node / "run").stat().st_mode & 0o077 == 0


def test_where_nobody_stands_by_the_guard_is_started_itself(tmp_path: Path) -> None:
    guard = tmp_path / "guard.py"
    guard.write_text("import sys\nprint(sys.argv[1:])\n")
    done = launch(tmp_path, guard, "--token", "a b")
    assert done.stdout.strip() == str([str(tmp_path), "--token", "a b"])


def test_a_copy_ends_with_the_process_that_it_is_a_copy_of() -> None:
    changed = with_this_parent(["--token", "x", "--parent-pid", "17", "--insecure"])
    assert changed == ["--token", "x", "--parent-pid", str(os.getppid()), "--insecure"]
    for arguments in (["--token", "x"], ["--parent-pid"]):
        assert with_this_parent(arguments) == arguments
