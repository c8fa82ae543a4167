"""A list's text files, compiled to sorted columns of keys and kept in a cache folder.

The text is the truth; :mod:`.entry` says what a line may hold. Compiled, an entry is a fixed
number of bytes (:mod:`.keys`), looked up by the million in bounded memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from laion_assets.files import atomic_path, locked, sha256_file, write_json
from laion_assets.removals.entries import NO_ENTRIES, Entries, of_columns
from laion_assets.removals.entry import BARE_HASHES, HASHES, WIDTHS, ListError, key_of_line
from laion_assets.removals.keys import Column, ColumnWriter

_FORMAT: Final = 2
"""Raised when the same text compiles to other columns."""
_BLOCK_BYTES: Final = 1 << 24
_VERSIONS_KEPT: Final = 3
_ATTEMPTS: Final = 5
"""How often a list is read again that was written meanwhile."""
_JUST_NOW_NS: Final = 2_000_000_000


def load(folder: Path, cache: Path | None = None) -> Entries:
    """All entries of the folder's ``*.txt`` files; an absent folder is an empty list.

    ``cache`` is a folder for the compiled columns: while the text stays the same, they are opened
    and no text is read. Without it they are compiled at each call. A file whose name begins with a
    dot is skipped. Raises :class:`.entry.ListError` naming file and line, and for a file that is
    not a list.
    """
    files = _files(folder)
    if not files:
        return Entries()
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="laion-assets-lists-") as scratch:
            _compile(files, Path(scratch))
            return open_compiled(Path(scratch))  # mapped files outlive their names
    current = cache / "current.json"
    with locked(cache / ".lock", lambda: None):
        stamps = [_stamp(path) for path in files]
        known = json.loads(current.read_text()) if current.exists() else {}
        made = cache / known.get("version", "")
        if known.get("stamps") == stamps and known.get("settled") and made.is_dir():
            return open_compiled(made)
        made = _compiled(folder, cache)
        entries = open_compiled(made)
        # A file written just now may be rewritten without a new time stamp.
        settled = all(time.time_ns() - stamp[2] > _JUST_NOW_NS for stamp in stamps)
        write_json(current, {"version": made.name, "stamps": stamps, "settled": settled})
        made.touch()
        _forget_old(cache, made)
    return entries


def _compiled(folder: Path, cache: Path) -> Path:
    """Folder of the columns of the text as it is now, which may be written at any time."""
    for _ in range(_ATTEMPTS):
        files = _files(folder)
        version = _version(files)
        made = cache / version
        if made.is_dir():
            return made
        with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as scratch:
            beside = Path(scratch) / "made"
            _compile(files, beside)
            # Otherwise the columns of one text would be kept under the name of another.
            if _version(files) == version:
                beside.rename(made)
                return made
    raise ListError(f"{folder} was written {_ATTEMPTS} times while it was read: try again later")


def _files(folder: Path) -> list[Path]:
    if folder.is_symlink() and not folder.exists():
        # To take that for no list would let everything back in.
        raise ListError(f"{folder} is a symbolic link that leads nowhere: mend or remove it")
    if folder.exists() and not folder.is_dir():
        raise ListError(f"{folder} is not a folder: move the list to a *.txt file in one")
    paths = sorted(folder.iterdir()) if folder.exists() else []
    shown = [path for path in paths if not path.name.startswith(".")]
    for path in shown:
        if path.suffix != ".txt":
            # Its writer believes that it is in force.
            raise ListError(f"{path} is not read: a list is a *.txt file; rename or remove it")
        if path.is_symlink() and not path.exists():
            raise ListError(f"{path} is a symbolic link that leads nowhere: mend or remove it")
        if path.exists() and not path.is_file():
            raise ListError(f"{path} is not a file, as a list is: move or remove it")
    return shown


def load_version(cache: Path, digest: str) -> Entries | None:
    """The compiled entries of an earlier text, if the cache still has them."""
    for meta in cache.glob("*/meta.json"):
        if json.loads(meta.read_text())["digest"] == digest:
            return open_compiled(meta.parent)
    return Entries() if digest == NO_ENTRIES else None


def open_compiled(folder: Path) -> Entries:
    """The entries of a folder of compiled columns, memory-mapped."""
    meta = json.loads((folder / "meta.json").read_text())
    columns = {
        kind: (Column.open(folder, kind, width),)
        for kind, width in WIDTHS.items()
        if meta["entries"].get(kind)
    }
    return Entries(columns, meta["digest"])


def _stamp(path: Path) -> list[Any]:
    stat = path.stat()
    return [path.name, stat.st_size, max(stat.st_mtime_ns, stat.st_ctime_ns), stat.st_ino]


def _version(files: Sequence[Path]) -> str:
    texts = [[path.name, sha256_file(path)] for path in files]
    return hashlib.sha256(json.dumps([_FORMAT, texts]).encode()).hexdigest()[:32]


def _forget_old(cache: Path, current: Path) -> None:
    """Delete all but the newest versions; a process that has one open keeps what it mapped."""
    made = [path.parent for path in cache.glob("*/meta.json") if path.parent != current]
    made.sort(key=lambda path: path.stat().st_mtime_ns)
    for old in made[: max(0, len(made) - _VERSIONS_KEPT + 1)]:
        shutil.rmtree(old)


def _compile(files: Sequence[Path], out: Path) -> None:
    """Write the columns of text files and their ``meta.json`` to the folder ``out``."""
    out.mkdir(exist_ok=True)
    writers = {kind: ColumnWriter(out, kind, width) for kind, width in WIDTHS.items()}
    for path in files:
        number = 1
        with path.open("rb") as stream:
            while lines := stream.readlines(_BLOCK_BYTES):
                _add_block(lines, writers, str(path), number)
                number += len(lines)
    for writer in writers.values():
        writer.write()
    columns = {kind: (Column.open(out, kind, width),) for kind, width in WIDTHS.items()}
    entries = of_columns(columns)
    meta = {
        "digest": entries.digest,
        "entries": {kind: len(column) for kind, (column,) in columns.items()},
    }
    with atomic_path(out / "meta.json") as beside:
        beside.write_text(json.dumps(meta))


_PLAIN: Final = {
    **{(kind.encode(), 2 * WIDTHS[kind]): kind for kind in HASHES},
    **{(b"", digits): kind for digits, kind in BARE_HASHES.items()},
}
"""(text before the last colon, digits after it) -> the kind of hash."""


def _add_block(
    lines: Sequence[bytes], writers: Mapping[str, ColumnWriter], origin: str, number: int
) -> None:
    """Add a block of lines to the columns.

    Long lists are lists of hashes, so the lines that look like one are decoded together.
    """
    plain: dict[str, list[bytes]] = {kind: [] for kind in HASHES}
    others: list[tuple[int, bytes]] = []
    for at, line in enumerate(lines, number):
        name, _, value = line.strip().rpartition(b":")
        kind = _PLAIN.get((name, len(value)))
        if kind is None:
            others.append((at, line))
        else:
            plain[kind].append(value)
    try:
        decoded = {kind: _from_hex(values) for kind, values in plain.items()}
    except ValueError:
        # One only looks like a hash: parse all lines in order, to name the first that is wrong.
        decoded, others = {}, list(enumerate(lines, number))
    for at, line in others:
        key = key_of_line(line, origin, at)
        if key is not None:
            writers[key.kind].add(key.value)
    for kind, raw in decoded.items():
        writers[kind].add(raw)


def _from_hex(values: Sequence[bytes]) -> bytes:
    text = b"".join(values)
    raw = bytes.fromhex(text.decode("ascii"))
    if 2 * len(raw) != len(text):
        raise ValueError("white space inside")  # `fromhex` skips it
    return raw
