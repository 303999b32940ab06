"""The roster that every site pins: whose long-term key speaks for which site."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flexmoe_core.enrollment import Roster, read_public_file


@dataclass(frozen=True)
class PinnedRoster:
    """``keys``: the OpenSSH line of each site's Ed25519 identity, active sites alone, by name."""

    keys: Mapping[str, str]

    @classmethod
    def of(cls, roster: Roster) -> PinnedRoster:
        """What counts of a coordinator's roster."""
        return cls({site: member.identity_key for site, member in sorted(roster.active.items())})

    @classmethod
    def read(cls, path: Path) -> PinnedRoster:
        """The roster in a file; raises InputError."""
        return cls.of(read_public_file(Roster, path))

    @property
    def digest(self) -> str:
        """SHA-256 over names and keys: equal at all sites that pinned the same roster."""
        return hashlib.sha256(json.dumps(dict(sorted(self.keys.items()))).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """The digest, short enough to compare by telephone."""
        return "SHA256:" + base64.b64encode(bytes.fromhex(self.digest)).decode().rstrip("=")

    def index(self, site: str) -> int:
        """Where a site's shares are evaluated: its place in the alphabet, from 1."""
        return sorted(self.keys).index(site) + 1
