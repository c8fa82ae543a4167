"""Adding entries to a list's text file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from laion_assets.files import locked, write_text
from laion_assets.removals.entry import parse_entry

REQUESTS: Final = "requests.txt"
"""The list's file for requests made by command."""


def add(folder: Path, entries: Sequence[str], reason: str | None = None) -> list[str]:
    """Append the entries that the file does not have yet; return these as they are written.

    ``reason`` goes into a comment line above them. Raises ``ListError`` for an entry that cannot
    be understood, and then adds nothing.
    """
    wanted = [f"{kind}:{value}" for kind, value in map(parse_entry, entries)]
    path = folder / REQUESTS
    with locked(folder / f".{REQUESTS}.lock", lambda: None):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        present = set(text.splitlines())
        new = [entry for entry in dict.fromkeys(wanted) if entry not in present]
        if new:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            comment = " ".join(f"{now} {reason or ''}".split())
            begin = text if not text or text.endswith("\n") else f"{text}\n"
            write_text(path, begin + "\n".join([f"# {comment}", *new]) + "\n")
    return new
