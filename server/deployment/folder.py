"""The coordinator's folder: what it holds, and how it is made.

Secret: authority.key, server.key, superexec.secret, and state/, which holds models in flight. All of it is for its
owner alone; the runs in runs/ are no secret.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.enrollment import Roster, read_public_file
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.validation import read_toml
from server.deployment.certificates import KeyAndCertificate, issue_server, make_authority
from server.deployment.settings import CoordinatorSettings

if TYPE_CHECKING:
    from flexmoe_core.study import Study  # loads PyTorch, which most commands do without

FOLDER_MODE, SECRET_MODE, PUBLIC_MODE = 0o700, 0o600, 0o644
SUPEREXEC_SECRET_BYTES = 32


@dataclass(frozen=True)
class CoordinatorFolder:
    """Paths in the folder, and what stands there."""

    path: Path

    @classmethod
    def create(cls, path: Path, settings: CoordinatorSettings, study: Study, now: datetime) -> CoordinatorFolder:
        """A new folder with an authority, a certificate and a secret; raises InputError where something is there."""
        path = path.resolve()
        _require_plain(path)
        try:
            if path.exists() and any(path.iterdir()):
                raise InputError([Problem(str(path), "", "is not empty", "Choose another folder.")])
            path.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
            path.chmod(FOLDER_MODE)
            for name in ("state", "flower", "logs", "run", "runs", "welcome"):
                (path / name).mkdir(mode=FOLDER_MODE)
        except OSError as error:
            what = f"cannot hold a coordinator: {error.strerror}"
            raise InputError([Problem(str(path), "", what, "Name a folder that you may write to.")]) from None
        folder = cls(path)
        folder._write("coordinator.toml", settings.to_toml().encode(), PUBLIC_MODE)
        folder._write("study.toml", study.to_toml().encode(), PUBLIC_MODE)
        folder._write_pair("authority", make_authority(f"{study.name} federation", now))
        folder._write_pair("server", issue_server(folder.authority, settings.outside.names, now))
        folder._write("superexec.secret", secrets.token_bytes(SUPEREXEC_SECRET_BYTES), SECRET_MODE)
        folder.save_roster(Roster())
        return folder

    @classmethod
    def open(cls, path: Path) -> CoordinatorFolder:
        """An existing folder; raises InputError where there is none, or others may read its secrets."""
        if not (path / "coordinator.toml").is_file():
            remedy = "Make one with 'flexmoe-server init', or correct the path."
            raise InputError([Problem(str(path), "", "is no coordinator's folder", remedy)])
        folder = cls(path.resolve())
        _require_plain(folder.path)
        folder._require_private()
        return folder

    @property
    def settings(self) -> CoordinatorSettings:
        """Those of coordinator.toml; raises InputError with every problem."""
        return read_toml(self.path / "coordinator.toml", CoordinatorSettings)

    @property
    def roster(self) -> Roster:
        """Who was enrolled."""
        return read_public_file(Roster, self.path / "roster.json")

    @property
    def authority(self) -> KeyAndCertificate:
        """The federation's certificate authority."""
        return self._pair("authority")

    @property
    def server(self) -> KeyAndCertificate:
        """The coordinator's own key and certificate."""
        return self._pair("server")

    @property
    def authority_certificate(self) -> bytes:
        """What the coordinator's own processes know the SuperLink by; the authority's key may be elsewhere."""
        return self._read("authority.crt")

    def run_folder(self, name: str) -> Path:
        """Where a run of that name is, or would be; raises InputError where the name is no plain one."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            remedy = "Use letters, digits, '.', '_' and '-', 64 at most, and begin with a letter or digit."
            raise InputError([Problem(name, "", "cannot be the name of a run", remedy)])
        return self.path / "runs" / name

    def save_roster(self, roster: Roster) -> None:
        """Replace the roster."""
        self._write("roster.json", (roster.model_dump_json(indent=2) + "\n").encode(), PUBLIC_MODE)

    def renew(self, now: datetime) -> None:
        """A new key and certificate for the coordinator, of the same authority."""
        self._write_pair("server", issue_server(self.authority, self.settings.outside.names, now))

    def _pair(self, stem: str) -> KeyAndCertificate:
        return KeyAndCertificate(self._read(f"{stem}.key"), self._read(f"{stem}.crt"))

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            what, remedy = f"cannot be read: {error.strerror}", "Restore it from your backup."
            raise InputError([Problem(str(self.path / name), "", what, remedy)]) from None

    def _write_pair(self, stem: str, pair: KeyAndCertificate) -> None:
        self._write(f"{stem}.key", pair.key, SECRET_MODE)
        self._write(f"{stem}.crt", pair.certificate, PUBLIC_MODE)

    def _write(self, name: str, data: bytes, mode: int) -> None:
        write_atomic(self.path / name, data, mode)

    def _require_private(self) -> None:
        wrong = [
            Problem(str(file), "", "can be read by others", f"Make it private: chmod 600 {file}")
            for file in self.secrets
            if file.exists() and file.stat().st_mode & 0o077
        ]
        if wrong:
            raise InputError(wrong)

    @property
    def secrets(self) -> Sequence[Path]:
        """Files that must be for their owner alone."""
        return [self.path / name for name in ("authority.key", "server.key", "superexec.secret")]


def _require_plain(path: Path) -> None:
    if not re.fullmatch(r"[^\s\"'\\;${}]+", str(path)) or not str(path).isprintable():
        remedy = "Choose a path without spaces, quotes, '\\', ';', '$' and braces."
        raise InputError([Problem(str(path), "", "cannot stand in nginx's configuration", remedy)])
