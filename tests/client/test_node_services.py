import shutil
import ssl
import stat
from pathlib import Path

import pytest

from client.node_folder import NodeFolder
from client.node_services import Ports, free_ports, node_services
from flexmoe_core.errors import InputError
from flexmoe_core.supervision import Service
from tests.e2e.coordinator import new_authority, write_node_folder

PORTS = Ports(7001, 7002, 7003)


def services(folder: Path, address: str = "coordinator.example:443", *, tunnel: bool = False) -> list[Service]:
    path = write_node_folder(folder, new_authority(), address, "cleveland", "heart", with_certificate=tunnel)
    node = NodeFolder(path)
    node.prepare()
    return node_services(node, folder.parent / "data", "cpu", node.welcome(), PORTS, {})


def test_the_processes_in_order_with_nothing_secret_on_their_command_lines(tmp_path: Path) -> None:
    supernode, standby, superexec = services(tmp_path / "node")
    secret = (tmp_path / "node" / "run" / "superexec.secret").read_bytes()
    assert len(secret) == 32
    for one in (supernode, standby, superexec):
        text = " ".join(one.command)
        assert secret.hex() not in text and "--insecure" not in text
        assert one.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert one.environment["FLWR_HOME"] == str(tmp_path / "node" / "flower")
    assert "coordinator.example:443" in supernode.command
    assert superexec.environment["PATH"] == str(tmp_path / "node" / "run" / "bin")
    assert [file.name for file in (tmp_path / "node" / "run" / "bin").iterdir()] == ["flwr-clientapp"]


def test_every_generated_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    services(tmp_path / "node", tunnel=shutil.which("stunnel") is not None)
    for file in (tmp_path / "node" / "run").rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_the_local_certificate_is_one_of_the_local_authority(tmp_path: Path) -> None:
    services(tmp_path / "node")
    run = tmp_path / "node" / "run"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(run / "local_ca.pem")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(run / "local.pem", run / "local_key.pem")


@pytest.mark.skipif(shutil.which("stunnel") is None, reason="needs stunnel")
def test_a_client_certificate_goes_through_a_tunnel_that_verifies_the_coordinator(tmp_path: Path) -> None:
    tunnel, supernode, *_ = services(tmp_path / "node", "192.0.2.7:443", tunnel=True)
    assert "127.0.0.1:7003" in supernode.command and "192.0.2.7:443" not in supernode.command
    settings = Path(tunnel.command[1]).read_text().splitlines()
    for line in ("verifyChain = yes", "checkIP = 192.0.2.7", "connect = 192.0.2.7:443", "accept = 127.0.0.1:7003"):
        assert line in settings


def test_a_missing_tunnel_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="apt-get install stunnel4"):
        services(tmp_path / "node", tunnel=True)


def test_a_path_that_flower_cannot_take_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quote"):
        services(tmp_path / "doctor's" / "node") if (tmp_path / "doctor's").mkdir() is None else None


def test_ports_are_free_or_as_given() -> None:
    ports = free_ports(1234, None)
    assert ports.runtime == 1234 and len({ports.runtime, ports.health, ports.tunnel}) == 3
