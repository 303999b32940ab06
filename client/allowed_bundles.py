"""The bundles of code that a hospital lets a coordinator run: a list of SHA-256 hashes.

`client/guard.py` reads the list anew at every message.
"""

from __future__ import annotations

import re
from pathlib import Path

from flexmoe_core.checkpoint import write_atomic
from flexmoe_core.errors import InputError, Problem

ALLOWED_FILE = "allowed_bundles.txt"
HEADER = (
    "# The bundles of code that the coordinator may run here: one SHA-256 a line, comments after '#'.\n"
    "# The list is read anew at every message.\n"
)


def listed(node: Path) -> dict[str, str]:
    """The allowed hashes with their comments. Raises InputError for a line that is neither hash nor comment."""
    found, problems = {}, []
    for number, line in enumerate(_text(node).splitlines(), start=1):
        word, _, comment = (part.strip() for part in line.partition("#"))
        if word and not is_hash(word):
            remedy = f"Correct or remove the line; 'flexmoe-client allow {node}' writes such lines."
            problems.append(Problem(str(node / ALLOWED_FILE), f"line {number}", "is not a SHA-256", remedy))
        elif word:
            found[word.lower()] = comment
    if problems:
        raise InputError(problems)
    return found


def allow(node: Path, digest: str, comment: str) -> bool:
    """Add a hash to the list; False if it was there. Raises InputError."""
    if digest in listed(node):
        return False
    text = _text(node) or HEADER
    _write(node, f"{text.rstrip()}\n{digest}  # {comment}\n")
    return True


def remove(node: Path, digest: str) -> None:
    """Take a hash from the list. Raises InputError when it is not on it."""
    if digest not in listed(node):
        remedy = f"'flexmoe-client allow {node} --list' shows those that are."
        raise InputError([Problem(str(node / ALLOWED_FILE), "", f"does not list {digest}", remedy)])
    lines = _text(node).splitlines(keepends=True)
    _write(node, "".join(line for line in lines if line.partition("#")[0].strip().lower() != digest))


def parse_hash(text: str) -> str:
    """The hash in lower case. Raises InputError when it is none."""
    if not is_hash(text):
        remedy = "Give the 64 hexadecimal digits that the coordinator or the site's log names."
        raise InputError([Problem(text, "", "is not a SHA-256", remedy)])
    return text.lower()


def is_hash(text: str) -> bool:
    """Whether it is a SHA-256 in hexadecimal digits."""
    return re.fullmatch("[0-9a-fA-F]{64}", text) is not None


def _text(node: Path) -> str:
    file = node / ALLOWED_FILE
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        problem = Problem(str(file), "", "cannot be read as text", "Correct the file or its permissions.")
        raise InputError([problem]) from None


def _write(node: Path, text: str) -> None:
    write_atomic(node / ALLOWED_FILE, text.encode())
