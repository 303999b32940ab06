from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flexmoe_core.enrollment import Member, Roster, flower_header
from server.deployment.membership import revoke
from server.deployment.proxy import FLEET_CALLS, nginx_configuration
from server.deployment.registrar import write_proxy_configuration
from tests.flexmoe_core.hospital_keys import enrollment_of
from tests.server.deployment.coordinators import NOW, make_folder, settings_of

PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
NGINX = shutil.which("nginx", path=PATH)


def roster_of(*sites: str) -> Roster:
    return Roster(
        members=tuple(
            Member(**enrollment_of(site).model_dump(exclude={"format"}), enrolled=datetime.now(UTC)) for site in sites
        )
    )


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "::1", "[::]"])
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("members", [0, 50])
def test_nginx_accepts_the_configuration(tmp_path: Path, listen: str, bound: bool, members: int) -> None:
    folder = make_folder(tmp_path / "coordinator", listen=listen, client_certificates=bound, port=18443)
    folder.save_roster(roster_of(*(f"site-{number}_{'n' * 50}" for number in range(members))))
    assert write_proxy_configuration(folder)
    checked = subprocess.run(
        [str(NGINX), "-t", "-p", folder.path / "run", "-e", "stderr", "-c", folder.path / "run" / "nginx.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "could not build" not in checked.stderr
    assert "[warn]" not in re.sub(r".*\"user\" directive.*", "", checked.stderr)


def test_every_call_of_a_site_s_node_is_let_through_and_registering_is_not() -> None:
    text = nginx_configuration(Path("/c"), settings_of(), Roster())
    (pattern,) = re.findall(r'location ~ "(.*)" \{', text)
    location = re.compile(pattern.replace(r"\z", r"\Z"))
    assert all(location.match(f"/v1/fleet/{call}") for call in FLEET_CALLS)
    for path in (
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages\n",
        "/V1/fleet/pull-messages",
        "/x/v1/fleet/pull-messages",
    ):
        assert not location.match(path), path


def test_the_configuration_says_where_it_listens() -> None:
    for listen, line in (("0.0.0.0", "listen 0.0.0.0:8443 ssl;"), ("::", "listen [::]:8443 ssl;")):
        assert line in nginx_configuration(Path("/c"), settings_of(listen=listen, port=8443), Roster())


def test_without_client_certificates_nobody_is_asked_for_one() -> None:
    text = nginx_configuration(Path("/c"), settings_of(), roster_of("north"))
    assert "ssl_client" not in text
    assert "$bound" not in text


def test_a_certificate_goes_with_the_key_of_the_same_hospital(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator", "north-1_b", "south", client_certificates=True)
    text = nginx_configuration(folder.path, folder.settings, folder.roster)
    for site, member in folder.roster.active.items():
        assert f'"CN={site}|{flower_header(member.node_key)}" 1;' in text
    assert text.count('"CN=') == 2
    revoke(folder, "south", NOW)
    assert nginx_configuration(folder.path, folder.settings, folder.roster).count('"CN=') == 1


def test_the_file_is_private_and_written_again_only_where_it_changes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "coordinator", "north", client_certificates=True)
    assert write_proxy_configuration(folder)
    assert (folder.path / "run" / "nginx.conf").stat().st_mode & 0o777 == 0o600
    assert not write_proxy_configuration(folder)
    revoke(folder, "north", NOW)
    assert write_proxy_configuration(folder)
