from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.deployment.services import services
from tests.server.deployment.coordinators import make_folder


def test_no_secret_stands_in_a_command_line_or_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "coordinator", "north", client_certificates=True)
    (folder.path / "superexec.secret").write_bytes(b"0123456789abcdef" * 2)
    monkeypatch.setattr("os.environ", {"PATH": "/usr/bin"})
    for service in services(folder):
        seen = " ".join([*service.command, *service.environment.values()]).encode()
        assert b"0123456789abcdef" not in seen
        assert b"PRIVATE KEY" not in seen


def test_flower_listens_inside_only_and_asks_for_keys_and_secret(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator", inside={"port": 19190, "health_port": 19191})
    superlink, executor, proxy = services(folder)
    assert [superlink.name, executor.name, proxy.name] == ["superlink", "executor", "proxy"]
    words = list(superlink.command)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "19190"
    assert words[words.index("--health-server-address") + 1] == "127.0.0.1:19191"
    assert words[words.index("--isolation") + 1] == "process"
    assert "--enable-supernode-auth" in words
    assert not any("insecure" in word for service in (superlink, executor) for word in service.command)
    for service in (superlink, executor):
        given = service.command[service.command.index("--superexec-auth-secret-file") + 1]
        assert given == str(folder.path / "superexec.secret")


def test_every_process_keeps_to_the_folder_and_tells_nobody(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator")
    for service in services(folder):
        assert service.environment["FLWR_HOME"] == str(folder.path / "flower")
        assert service.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert service.log.parent == folder.path / "logs"


def test_programs_of_flower_are_those_of_this_installation(tmp_path: Path) -> None:
    for service in services(make_folder(tmp_path / "coordinator"))[:2]:
        assert os.access(service.command[0], os.X_OK)
