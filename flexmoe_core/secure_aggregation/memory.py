"""What a site keeps of its secrets from one message to the next, and of what it has done with them.

One file per place (mode 0600). It is written before anything that follows from it leaves, so that nothing is done
twice however a process ends; a file whose secrets are erased stays, and says that they were used.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.errors import MaskingRefused
from flexmoe_core.secure_aggregation.keys import Hex32, Place, PublicKeys, Secrets
from flexmoe_core.secure_aggregation.sealing import SharePair
from flexmoe_core.validation import FrozenModel, SafeName

AFTER_ALL: Final = (2**31, 0)
LOCK = "lock"
Phase = Literal["announced", "dealt", "masked", "over"]


class Memory(FrozenModel):
    """One place. ``peers`` are those to whom shares were dealt, ``sealed`` what was dealt, in hexadecimal.

    ``shares`` are those that others dealt, of the sites of ``cohort``; ``received`` names the request that was
    masked for.
    """

    place: Place
    phase: Phase
    keys: PublicKeys
    secrets: Secrets | None = Field(default=None, repr=False)
    peers: dict[SafeName, PublicKeys] = Field(default={})
    sealed: dict[SafeName, str] = Field(default={})
    own: SharePair | None = Field(default=None, repr=False)
    cohort: tuple[SafeName, ...] = ()
    received: Hex32 | None = None
    shares: dict[SafeName, SharePair] = Field(default={}, repr=False)

    def erased(self) -> Memory:
        """Without anything secret, for ever over."""
        return Memory(place=self.place, phase="over", keys=self.keys)


class MemoryFolder:
    """The files of one run at one site."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes of this site from taking a step meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def find(self, place: Place) -> Memory | None:
        """What is known of a place; raises MaskingRefused where the file cannot be read."""
        file = self._file(place.order)
        return self._read(file) if file.exists() else None

    def keep(self, memory: Memory) -> None:
        """Write it down, on the disk when this returns."""
        write_atomic(self._file(memory.place.order), memory.model_dump_json().encode())

    def last(self) -> tuple[int, int]:
        """The order of the last place that was ever used; (0, 0) before."""
        return max((self._order(file) for file in self._folder.glob("*.json")), default=(0, 0))

    def erase_before(self, order: tuple[int, int]) -> None:
        """Erase the secrets of all earlier places, whatever became of them."""
        for file in self._folder.glob("*.json"):
            if self._order(file) < order:
                memory = self._read(file)
                if memory.phase != "over":
                    self.keep(memory.erased())

    def erase_older(self, seconds: float) -> None:
        """Erase secrets that nobody came back for: of files written longer ago."""
        for file in self._folder.glob("*.json"):
            if time.time() - file.stat().st_mtime > seconds:
                memory = self._read(file)
                if memory.phase != "over":
                    self.keep(memory.erased())

    def _file(self, order: tuple[int, int]) -> Path:
        return self._folder / f"{order[0]:06d}-{order[1]:06d}.json"

    @staticmethod
    def _order(file: Path) -> tuple[int, int]:
        attempt, _, round_number = file.stem.partition("-")
        return int(attempt), int(round_number)

    @staticmethod
    def _read(file: Path) -> Memory:
        try:
            return Memory.model_validate_json(file.read_bytes())
        except ValidationError:
            raise MaskingRefused(f"{file} was changed or cut short") from None
