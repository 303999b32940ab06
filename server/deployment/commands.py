"""The commands ``flexmoe-server init``, ``enroll``, ``revoke``, ``renew`` and ``start``."""

from __future__ import annotations

import fcntl
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flexmoe_core.enrollment import Enrollment, fingerprint, read_public_file
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.study import load_study
from flexmoe_core.supervision import Supervisor
from flexmoe_core.validation import validate
from server.deployment.arguments import Folder
from server.deployment.certificates import expires
from server.deployment.folder import CoordinatorFolder
from server.deployment.membership import enroll as enroll_site
from server.deployment.membership import revoke as revoke_site
from server.deployment.membership import write_welcome
from server.deployment.registrar import Registrar, reload_proxy, write_proxy_configuration
from server.deployment.services import services
from server.deployment.settings import CoordinatorSettings


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Folder to make.")],
    study: Annotated[Path, typer.Option(help="The study.toml that hospitals are invited to.")],
    names: Annotated[
        list[str],
        typer.Option("--name", help="Name or address at which hospitals reach you. Repeatable; they use the first."),
    ],
    port: Annotated[int, typer.Option(help="Port at which hospitals reach you.")] = 443,
    listen: Annotated[str, typer.Option(help="Address that the proxy listens on.")] = "0.0.0.0",
    inside_port: Annotated[int, typer.Option(help="Flower's own port, on 127.0.0.1.")] = 9190,
    health_port: Annotated[int, typer.Option(help="Port of the health service, on 127.0.0.1.")] = 9191,
    client_certificates: Annotated[
        bool, typer.Option("--client-certificates", help="Let a hospital in only with its own certificate as well.")
    ] = False,
) -> None:
    """Make the coordinator's folder: settings, certificate authority, certificate, secret, an empty roster.

    DIR is the folder to make. Keep a backup of it where nobody else can read it.
    """
    outside = {"names": names, "port": port, "listen": listen, "client_certificates": client_certificates}
    inside = {"port": inside_port, "health_port": health_port}
    settings = validate({"outside": outside, "inside": inside}, CoordinatorSettings, "the command line")
    made = CoordinatorFolder.create(folder, settings, load_study(study), datetime.now(UTC))
    typer.echo(f"Folder       {made.path}")
    typer.echo(f"Hospitals    reach you at https://{settings.address}; nothing else may be open")
    typer.echo(f"Certificate  until {expires(made.server.certificate):%Y-%m-%d}; then: flexmoe-server renew {folder}")
    typer.echo(f"Next         flexmoe-server enroll {folder} SITE --public-key enrollment.json")


def enroll(
    folder: Folder,
    site: Annotated[str, typer.Argument(metavar="SITE", show_default=False, help="The hospital's name.")],
    public_key: Annotated[Path, typer.Option(help="The enrollment.json that the hospital sent.")],
) -> None:
    """Put a hospital on the roster, and write the welcome to send back to it.

    DIR is the coordinator's folder, SITE the hospital's name.

    Compare the two fingerprints with its engineer by telephone before you send it.
    """
    opened, enrollment = CoordinatorFolder.open(folder), read_public_file(Enrollment, public_key)
    if enrollment.site != site:
        remedy = "Ask the hospital which name is right."
        raise InputError([Problem(str(public_key), "site", f"is {enrollment.site}, not {site}", remedy)])
    welcome = enroll_site(opened, enrollment, datetime.now(UTC))
    typer.echo(f"Node key      {fingerprint(enrollment.node_key)}")
    typer.echo(f"Identity key  {fingerprint(enrollment.identity_key)}")
    typer.echo(f"Send back     {welcome}")


def revoke(
    folder: Folder,
    site: Annotated[str, typer.Argument(metavar="SITE", show_default=False, help="The hospital's name.")],
) -> None:
    """Strike a hospital's keys from the roster: it is cut off within seconds, and may enroll with new keys.

    DIR is the coordinator's folder, SITE the hospital's name.
    """
    gone = revoke_site(CoordinatorFolder.open(folder), site, datetime.now(UTC))
    typer.echo(f"Revoked  {gone.site}, enrolled {gone.enrolled:%Y-%m-%d}, {fingerprint(gone.node_key)}")


def renew(
    folder: Folder,
    site: Annotated[str | None, typer.Option(help="Renew this hospital's welcome and certificate instead.")] = None,
) -> None:
    """Renew the coordinator's certificate: the proxy takes it at once, the SuperLink at its next start.

    DIR is the coordinator's folder.
    """
    opened, now = CoordinatorFolder.open(folder), datetime.now(UTC)
    if site is not None:
        typer.echo(f"Send back    {write_welcome(opened, site, now)}")
        return
    opened.renew(now)
    reload_proxy(opened)
    typer.echo(f"Certificate  until {expires(opened.server.certificate):%Y-%m-%d}")


def start(folder: Folder) -> None:
    """Run SuperLink, executor and proxy until you stop it (Ctrl-C or SIGTERM); what ends is started again.

    DIR is the coordinator's folder; what the three say is in DIR/logs.
    """
    opened = CoordinatorFolder.open(folder)
    with (opened.path / "run" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            remedy = "Stop that one first."
            raise InputError([Problem(str(opened.path), "", "is run by another 'start' already", remedy)]) from None
        write_proxy_configuration(opened)
        registrar = Registrar(opened, _tell)
        registrar.start()
        _tell(f"hospitals reach you at https://{opened.settings.address}")
        try:
            code = Supervisor(services(opened), _tell).run()
        finally:
            registrar.stop()
    raise typer.Exit(code)


def _tell(sentence: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {sentence}", file=sys.stderr, flush=True)
