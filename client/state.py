"""What a site remembers between messages: its last answer and its local parameters, one folder per run.

In a deployment every message runs in a new process, so whatever must survive is a file here (mode 0600).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flexmoe_core.checkpoint import keep_last, latest_checkpoint, write_atomic, write_checkpoint

LOCAL_PREFIX = "local-"
ANSWER_FILE = "answer.bin"
SEAL_BYTES = 64
KEPT_ROUNDS = 3  # of the coordinator's two checkpoints, and of the round under way


class RunState:
    """The state of one run at one site."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder = folder / run
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def answer_to(self, request: bytes) -> bytes | None:
        """The stored answer to exactly these bytes, if the last request was the same and the answer is whole."""
        file = self._answer_file
        if not file.exists():
            return None
        stored = file.read_bytes()
        answer = stored[SEAL_BYTES:]
        return answer if stored[:SEAL_BYTES] == _seal(request, answer) else None

    def store_answer(self, request: bytes, answer: bytes) -> None:
        """Remember the answer, in place of the previous one."""
        write_atomic(self._answer_file, _seal(request, answer) + answer)

    def local_before(self, round_number: int) -> dict[str, np.ndarray]:
        """Local parameters as they were before the given round; empty for a site that has not trained yet.

        Later ones are forgotten: the coordinator has gone back to this round.
        """
        for file in self.folder.glob(f"{LOCAL_PREFIX}*"):
            if int(file.stem.removeprefix(LOCAL_PREFIX)) >= round_number:
                file.unlink()
        found, _ = latest_checkpoint(self.folder, LOCAL_PREFIX)
        return found.arrays if found else {}

    def clip_before(self, round_number: int) -> float | None:
        """The clipping norm that the round before the given one ended with, where one was kept."""
        found, _ = latest_checkpoint(self.folder, LOCAL_PREFIX)
        if found is None or found.facts["round"] >= round_number:
            return None
        clip = found.facts.get("clip")
        return None if clip is None else float(clip)

    def store_local(self, round_number: int, parameters: Mapping[str, np.ndarray], clip: float | None = None) -> None:
        """Keep the local parameters, and the clipping norm if one adapts, as they are after the given round.

        Those of the two rounds before are kept as well.
        """
        facts = {"round": round_number} | ({} if clip is None else {"clip": clip})
        write_checkpoint(self.folder / f"{LOCAL_PREFIX}{round_number:05d}", parameters, facts)
        keep_last(self.folder, KEPT_ROUNDS, LOCAL_PREFIX)

    @property
    def _answer_file(self) -> Path:
        return self.folder / ANSWER_FILE


def _seal(request: bytes, answer: bytes) -> bytes:
    """What names a request and its answer."""
    return hashlib.sha256(request).digest() + hashlib.sha256(answer).digest()


def stored_seal(folder: Path, run: str) -> bytes:
    """The seal of the answer that a run's state holds, whole or not; empty where it holds none."""
    file = folder / run / ANSWER_FILE
    if not file.exists():
        return b""
    with file.open("rb") as stored:
        return stored.read(SEAL_BYTES)
