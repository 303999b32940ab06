"""coordinator.toml: where the coordinator is to be reached, and how."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

import tomli_w
from pydantic import AfterValidator, Field

from flexmoe_core.validation import Finding, Findings, FrozenModel

Port = Annotated[int, Field(ge=1, le=65535)]


def _host(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*", name):
            remedy = "Write a name such as fl.example.org, or an address such as 203.0.113.5."
            raise Findings(Finding("is neither a host name nor an IP address", remedy)) from None
    return name


Host = Annotated[str, AfterValidator(_host)]


class OutsideSettings(FrozenModel):
    """What hospitals reach, through the proxy; they are told the first of the names."""

    names: tuple[Host, ...] = Field(min_length=1, description="host names or addresses, all in the certificate")
    port: Port = 443
    listen: str = Field(
        default="0.0.0.0", pattern=r"^[0-9A-Fa-f.:\[\]]+$", description="address that nginx listens on"
    )
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

    @property
    def address(self) -> str:
        """host:port, as hospitals are told."""
        host = self.outside.names[0]
        return f"[{host}]:{self.outside.port}" if ":" in host else f"{host}:{self.outside.port}"

    def to_toml(self) -> str:
        """The text of a coordinator.toml that gives the same settings."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
