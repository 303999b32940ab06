from __future__ import annotations

from pathlib import Path

import pytest

from flexmoe_core.errors import InputError
from flexmoe_core.validation import read_toml, validate
from server.deployment.settings import CoordinatorSettings
from tests.server.deployment.coordinators import settings_of


def refusal(data: dict[str, object]) -> str:
    with pytest.raises(InputError) as refused:
        validate(data, CoordinatorSettings, "coordinator.toml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("fl.example.org", "fl.example.org:443"),
        ("FL.Example.ORG", "FL.Example.ORG:443"),
        ("localhost", "localhost:443"),
        ("3com.example", "3com.example:443"),
        ("xn--brse-5qa.example", "xn--brse-5qa.example:443"),
        ("203.0.113.5", "203.0.113.5:443"),
        ("2001:db8::1", "[2001:db8::1]:443"),
    ],
)
def test_host_names_and_addresses(name: str, address: str) -> None:
    assert settings_of((name,)).address == address


@pytest.mark.parametrize(
    "name",
    [
        "",
        "fl_1.example.org",  # DNS may carry it, but it names no host
        "-fl.example.org",
        "fl-.example.org",
        "fl.-example.org",
        "fl..example.org",
        "fl.example.org.",
        "fl.example.org\n",
        "fl.example.org:443",
        "https://fl.example.org",
        "fl example.org",
        "börse.example",
        "256.1.1.1",
        "203.0.113",
        "[2001:db8::1]",
        "fe80::1%eth0",
        "n" * 64 + ".example",
        ".".join(["n" * 60] * 5),
    ],
)
def test_what_names_no_host_is_refused_in_words(name: str) -> None:
    assert "outside.names.#1: is neither a host name nor an IP address" in refusal({"outside": {"names": [name]}})


@pytest.mark.parametrize(("listen", "read"), [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("[::1]", "::1")])
def test_addresses_to_listen_on(listen: str, read: str) -> None:
    assert settings_of(listen=listen).outside.listen == read


@pytest.mark.parametrize("listen", ["", "999.0.0.1", "localhost", "1.2.3.4:443", "[::", "::1;", "fe80::1%eth0"])
def test_what_is_no_address_is_not_listened_on(listen: str) -> None:
    assert "outside.listen: is not an IP address" in refusal({"outside": {"names": ["a.org"], "listen": listen}})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "outside: is missing"),
        ({"outside": {"names": []}}, "outside.names: should have at least 1 entries"),
        ({"outside": {"names": ["a.org"], "port": 0}}, "outside.port: should be greater than or equal to 1"),
        ({"outside": {"names": ["a.org"], "port": 70000}}, "outside.port: should be less than or equal to 65535"),
        ({"outside": {"names": ["a.org"], "prot": 443}}, "outside.prot: is not a known key. Did you mean 'port'?"),
        ({"outside": {"names": ["a.org"], "port": 9190}}, "are not three different ports"),
        ({"outside": {"names": ["a.org"]}, "inside": {"port": 9191}}, "are not three different ports"),
    ],
)
def test_wrong_settings_are_refused_in_words(data: dict[str, object], words: str) -> None:
    assert words in refusal(data)


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    settings = settings_of(("fl.example.org", "2001:db8::1"), listen="::", client_certificates=True, port=8443)
    (tmp_path / "coordinator.toml").write_text(settings.to_toml())
    assert read_toml(tmp_path / "coordinator.toml", CoordinatorSettings) == settings
