"""A hospital's node folder: where keys, the coordinator's welcome, state and logs are, and the checks of them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from client.allowed_bundles import ALLOWED_FILE
from flexmoe_core.enrollment import Enrollment, Welcome, read_public_file
from flexmoe_core.errors import InputError, Problem

ROSTER_FILE = "roster.json"
PRIVATE_KEYS = ("node_key", "identity_key", "tls_key")


@dataclass(frozen=True)
class NodeFolder:
    """The places in a node folder."""

    path: Path

    @property
    def state(self) -> Path:
        """The site's own files, one folder per run among them."""
        return self.path / "state"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.path / "logs"

    @property
    def flower(self) -> Path:
        """Flower's home."""
        return self.path / "flower"

    @property
    def run(self) -> Path:
        """Files of the running node, written anew at each start."""
        return self.path / "run"

    @property
    def status_file(self) -> Path:
        """What the running node knows of itself."""
        return self.run / "status.json"

    @property
    def pid_file(self) -> Path:
        """The running node's process id; it is locked for as long as the node runs."""
        return self.run / "node.pid"

    @property
    def allowed_file(self) -> Path:
        """The list of bundles that may run here."""
        return self.path / ALLOWED_FILE

    def prepare(self) -> None:
        """Make the folders, for their owner alone."""
        for folder in (self.state, self.logs, self.flower, self.run, self.run / "bin"):
            folder.mkdir(mode=0o700, exist_ok=True)

    def welcome(self) -> Welcome:
        """The coordinator's welcome, which must be for this site.

        Raises InputError with every problem of the folder: keys that are absent or open to others included.
        """
        problems = self._key_problems()
        try:
            welcome = read_public_file(Welcome, self.path / "welcome.json")
            enrollment = read_public_file(Enrollment, self.path / "enrollment.json")
            if welcome.site != enrollment.site:
                what = f"is for the site '{welcome.site}', and this folder is that of '{enrollment.site}'"
                remedy = "Ask the coordinator for the welcome of this site."
                problems.append(Problem(str(self.path / "welcome.json"), "site", what, remedy))
        except InputError as error:
            problems.extend(error.problems)
        if problems:
            raise InputError(problems)
        return welcome

    def _key_problems(self) -> list[Problem]:
        if not self.path.is_dir():
            remedy = "Make it with 'flexmoe-client keygen'."
            return [Problem(str(self.path), "", "is not a folder", remedy)]
        found = [problem for name in PRIVATE_KEYS for problem in _private_file_problems(self.path / name)]
        if self.allowed_file.exists() and self.allowed_file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            what, remedy = "can be changed by others", f"Run: chmod go-w {self.allowed_file}"
            found.append(Problem(str(self.allowed_file), "", what, remedy))
        return found


def _private_file_problems(file: Path) -> list[Problem]:
    """What is wrong with a private key's file: absent, open to others, or somebody else's."""
    try:
        facts = file.lstat()
    except OSError:
        remedy = "Make the folder's keys with 'flexmoe-client keygen', or restore the file."
        return [Problem(str(file), "", "is not there", remedy)]
    if not stat.S_ISREG(facts.st_mode):
        return [Problem(str(file), "", "is not a plain file", "Put the key itself there, not a link to it.")]
    if facts.st_uid != os.getuid():
        return [Problem(str(file), "", "belongs to another user", f"Run: chown {os.getuid()} {file}")]
    if stat.S_IMODE(facts.st_mode) & 0o177:
        what = f"can be read by others (mode {stat.S_IMODE(facts.st_mode):04o})"
        return [Problem(str(file), "", what, f"Run: chmod 600 {file}")]
    return []
