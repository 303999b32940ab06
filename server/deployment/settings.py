"""coordinator.toml: where the coordinator is to be reached, and how."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

import tomli_w
from pydantic import AfterValidator, Field, model_validator

from flexmoe_core.validation import Finding, Findings, FrozenModel

Port = Annotated[int, Field(ge=1, le=65535)]


def _host(name: str) -> str:
    if not (_is_address(name) or _is_host_name(name)):
        remedy = "Write a name such as fl.example.org, or an address such as 203.0.113.5; the port stands elsewhere."
        raise Findings(Finding("is neither a host name nor an IP address", remedy))
    return name


def _listen(address: str) -> str:
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    if not _is_address(bare):
        remedy = "Write 0.0.0.0 for all IPv4 addresses, :: for all IPv6 addresses, or one of this machine's."
        raise Findings(Finding("is not an IP address", remedy))
    return bare


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone means something on one machine only


def _is_host_name(text: str) -> bool:
    """By RFC 1123: no underscores; a last part of digits alone would be an address."""
    parts = text.split(".")
    sound = all(re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", part) for part in parts)
    return sound and len(text) <= 253 and not parts[-1].isdecimal()


Host = Annotated[str, AfterValidator(_host)]
Listen = Annotated[str, AfterValidator(_listen)]


def in_brackets(host: str) -> str:
    """The host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


class OutsideSettings(FrozenModel):
    """What hospitals reach, through the proxy; they are told the first of the names."""

    names: tuple[Host, ...] = Field(min_length=1, description="host names or addresses, all in the certificate")
    port: Port = 443
    listen: Listen = Field(default="0.0.0.0", description="address that nginx listens on")
    client_certificates: bool = Field(
        default=False, description="only a hospital's own certificate together with its own node key gets through"
    )
    requests_per_second: int = Field(default=20, ge=1, description="of one hospital")


class InsideSettings(FrozenModel):
    """Flower's own ports, on 127.0.0.1: whoever reaches them controls the federation."""

    port: Port = 9190
    health_port: Port = 9191


class CoordinatorSettings(FrozenModel):
    """A whole coordinator.toml."""

    outside: OutsideSettings
    inside: InsideSettings = InsideSettings()

    @model_validator(mode="after")
    def _ports_differ(self) -> CoordinatorSettings:
        if len({self.outside.port, self.inside.port, self.inside.health_port}) < 3:
            what = "outside.port, inside.port and inside.health_port are not three different ports"
            raise Findings(Finding(what, "Change one."))
        return self

    @property
    def address(self) -> str:
        """host:port, as hospitals are told."""
        return f"{in_brackets(self.outside.names[0])}:{self.outside.port}"

    def to_toml(self) -> str:
        """The text of a coordinator.toml that gives the same settings."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
