"""Where the ledger that a command is about is kept, and the key that signs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.keys import IDENTITY_KEY
from client.ledger import PrivacyLedger
from client.ledger_file import LEDGER_FILE
from client.ledger_start import KEY_FILE
from client.node_folder import NodeFolder
from flexmoe_core.errors import InputError, Problem
from flexmoe_core.signatures import read_identity_key


@dataclass(frozen=True)
class LedgerPlace:
    """A state folder, and the key."""

    state: Path
    key: Ed25519PrivateKey

    @property
    def path(self) -> Path:
        """The ledger itself."""
        return self.state / LEDGER_FILE

    def open(self) -> PrivacyLedger:
        """The ledger, checked. Raises LedgerError."""
        return PrivacyLedger.open(self.state, self.key)


def ledger_place(folder: Path) -> LedgerPlace:
    """Of a node folder, or of the state folder of a simulated site. Raises InputError for any other folder."""
    if (folder / IDENTITY_KEY).exists():
        return LedgerPlace(NodeFolder(folder).state, read_identity_key(folder / IDENTITY_KEY))
    if (folder / KEY_FILE).exists():
        return LedgerPlace(folder, read_identity_key(folder / KEY_FILE))
    what = (
        f"holds neither {IDENTITY_KEY}, as a node folder does, nor {KEY_FILE}, as the state of a simulated site does"
    )
    raise InputError([Problem(str(folder), "", what, "Name your node folder.")])
