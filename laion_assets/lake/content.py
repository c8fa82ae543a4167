"""The files of one partition's folder: preparing it, and the digests of what it holds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from laion_assets import tables
from laion_assets.files import fsync_file, sha256_file, write_json

MANIFEST: Final = "_manifest.json"
"""File that makes a folder a published partition; see :class:`laion_assets.lake.Manifest`."""

FINGERPRINT: Final = ".fingerprint.json"
"""File of a staging folder: the fingerprint of what the partition is made from."""

_PARQUET: Final = b"PAR1"
"""Beginning of every parquet file, whatever its name."""


_FOR_S: Final = 3600.0
_SETTLED_NS: Final = 2 * 10**9
_MOST: Final = 1 << 16


class Digested:
    """The files that this process has read lately, and the SHA-256 that each had.

    A file is known by device, inode, size and modification time, so that a link to it is known,
    too. One that was modified in the last two seconds is not noted: a change right after that may
    not show in its time. What was noted is forgotten after an hour: a disk may lose what it had.
    """

    def __init__(self) -> None:
        self._noted: dict[tuple[int, int, int, int, str], float] = {}

    def note(self, about: os.stat_result, sha256: str) -> None:
        """Note a file that was read after ``about`` was asked for."""
        if time.time_ns() - about.st_mtime_ns < _SETTLED_NS:
            return
        if len(self._noted) >= _MOST:
            self._noted.clear()
        self._noted[_known_by(about, sha256)] = time.monotonic()

    def has(self, about: os.stat_result, sha256: str) -> bool:
        noted = self._noted.get(_known_by(about, sha256))
        return noted is not None and time.monotonic() - noted < _FOR_S


def _known_by(about: os.stat_result, sha256: str) -> tuple[int, int, int, int, str]:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, sha256


DIGESTED: Final = Digested()
"""Those of this process: what it has just compared or written, it does not read again."""


def is_wanted(name: str, names: str, but: Collection[str]) -> bool:
    """Whether a file's name matches the pattern ``names``, and none of ``but``."""
    return fnmatch(name, names) and not any(fnmatch(name, pattern) for pattern in but)


def digest(value: object) -> str:
    """Return 32 hex digits that are the same for equal JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def content_version(files: Sequence[Mapping[str, Any]], not_content: Sequence[str]) -> str:
    """Return the digest of all files but those whose names match ``not_content``."""
    return digest(
        [
            [item["name"], item["sha256"]]
            for item in files
            if not any(fnmatch(item["name"], pattern) for pattern in not_content)
        ]
    )


def prepare(path: Path, fingerprint: str, stage_judges_parts: bool) -> bool:
    """Make the staging folder ready; return whether it may hold parts of an earlier run."""
    marker = path / FINGERPRINT
    begun = marker.exists()
    if begun and json.loads(marker.read_text())["fingerprint"] == fingerprint:
        return True
    resumed = begun and stage_judges_parts
    if path.exists() and not resumed:
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"fingerprint": fingerprint})
    return resumed


def known_digests(
    folders: Iterable[tuple[Path, Sequence[Mapping[str, Any]]]],
    staged: Mapping[Path, str],
) -> dict[tuple[int, int], str]:
    """Return the SHA-256 of files by device and inode.

    ``folders`` are published folders and the files of their manifests. Published files are never
    written to, so that a hard link to one has its digest. ``staged``: the digests of other files.
    """
    known = {}
    for path, sha256 in staged.items():
        stat = path.stat()
        known[stat.st_dev, stat.st_ino] = sha256
    for folder, files in folders:
        for item in files:
            with suppress(FileNotFoundError):  # the partition has been replaced meanwhile
                stat = (folder / item["name"]).stat()
                known[stat.st_dev, stat.st_ino] = item["sha256"]
    return known


def describe(folder: Path, known: Mapping[tuple[int, int], str]) -> list[dict[str, Any]]:
    """Return name, size and SHA-256 of every file below the folder, and what
    :func:`laion_assets.tables.describe` says of a parquet file, so that nobody opens it for that.

    Files are fsynced, and temporary ones deleted. A file that is ``known`` is not read.
    """
    described, temporary = [], []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        relative = path.relative_to(folder)
        if relative.name == FINGERPRINT:
            # It stays until the exchange: a run that is killed before must find its parts again.
            continue
        if any(part.startswith(".") for part in relative.parts) or relative.name == MANIFEST:
            temporary.append(path)
            continue
        stat = path.stat()
        sha256 = known.get((stat.st_dev, stat.st_ino))
        if sha256 is None:
            fsync_file(path)
            sha256 = sha256_file(path)
            DIGESTED.note(stat, sha256)
        described.append({"name": str(relative), "bytes": stat.st_size, "sha256": sha256})
        with path.open("rb") as stream:
            is_parquet = stream.read(len(_PARQUET)) == _PARQUET
        described[-1] |= tables.describe(path) if is_parquet else {}
    # Last, as a stage's notes are among them: a run that is killed before goes on from these.
    for path in temporary:
        path.unlink()
    return described
