"""A hospital on a network of its own that is cut for two minutes, and a model of 20 MB."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.figures import note
from tests.e2e.lab import Lab, lab, needs_nginx, program, run, until

pytestmark = [pytest.mark.e2e, needs_nginx]
CUT_S = 120.0
ROUNDS = 6
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2, to make a network"
)


@contextmanager
def network() -> Iterator[tuple[str, str, str]]:
    """A namespace with one link to here: its name, the link's name, and the address of this side."""
    name = f"flexmoe-{secrets.token_hex(3)}"
    here, there, address = f"{name[-6:]}h", f"{name[-6:]}t", "10.213.77.1"
    commands = (
        f"ip netns add {name}",
        f"ip link add {here} type veth peer name {there} netns {name}",
        f"ip addr add {address}/30 dev {here}",
        f"ip link set {here} up",
        f"ip -n {name} addr add 10.213.77.2/30 dev {there}",
        f"ip -n {name} link set {there} up",
        f"ip -n {name} link set lo up",
    )
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield name, here, address
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "study"
    run([*program("flexmoe-sim"), "prepare", "synthetic", "--sites", "3", "--out", str(folder)])
    return folder


@needs_namespaces
def test_a_network_that_is_cut_for_two_minutes_costs_one_hospital_some_rounds(data: Path, tmp_path: Path) -> None:
    with network() as (namespace, link, address), lab(tmp_path, data, (), host=address, listen=address) as one:
        one.admit("site-1")
        one.admit("site-2")
        one.admit("site-3", within=["ip", "netns", "exec", namespace])
        one.start_all()
        one.submit(
            "cut", "--rounds", str(ROUNDS), "--set", "federation.quorum=2", "--set", "federation.deadline_s=60"
        )
        until("the first round", lambda: one.round("cut") >= 1)
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        time.sleep(CUT_S)
        subprocess.run(["ip", "link", "set", link, "up"], check=True)
        restored = time.monotonic()
        until("site-3 is online again", lambda: "site-3" in one.online(), 180)
        seconds = time.monotonic() - restored
        assert one.wait_for_end("cut") == "finished"
        history = one.history("cut")
        assert [row["aggregated"] for row in history] == [True] * ROUNDS
        absent = {site for row in history for site in (*row["missing"], *row["failed"], *row["dropped"])}
        assert absent == {"site-3"}
        note("the network of a hospital cut for 120 s", ROUNDS, 0, seconds)


def test_a_model_of_twenty_megabytes_passes(data: Path, tmp_path: Path) -> None:
    with lab(tmp_path, data, ("site-1", "site-2")) as one:
        one.start_all()
        sizes = {"width": 256, "experts": 16, "expert_width": 608}
        options = [word for key, value in sizes.items() for word in ("--set", f"method.model.{key}={value}")]
        one.server("run", "--name", "large", "--rounds", "1", "--set", "federation.quorum=2", *options)
        (row,) = one.history("large")
        assert row["answered"] == ["site-1", "site-2"]
        assert row["bytes_down"] > 2 * 20_000_000
        assert row["bytes_up"] > 2 * 20_000_000


def test_the_lab_has_free_hands(tmp_path: Path, data: Path) -> None:
    """Nothing of a lab is left when it is closed."""
    with lab(tmp_path, data, ("site-1",)) as one:
        one.start_all()
        assert isinstance(one, Lab)
    left = [
        folder.name
        for folder in Path("/proc").glob("[0-9]*")
        if str(tmp_path).encode() in (folder / "cmdline").read_bytes()
    ]
    assert not left
