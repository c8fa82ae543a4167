"""Compare files with what a manifest says of them, before something is made of them.

What is made of damage has digests of its own: from there on, nothing would find it. So stages get
only files that are as they were published. What does not belong here: looking through the lake
(:mod:`laion_assets.lake.verify`).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from laion_assets.errors import PermanentError
from laion_assets.files import link_or_copy
from laion_assets.lake.content import DIGESTED, is_wanted
from laion_assets.lake.partition import LakeError, Manifest

_CHUNK: Final = 1 << 22
"""Bytes of a file that are read at once."""


class DamagedFilesError(LakeError, PermanentError):
    """Files of a partition are not as they were published; the message says what to do."""

    def __init__(self, what: str, damaged: Mapping[str, str], otherwise: str = "") -> None:
        """``otherwise``: what to do without a backup, if not to materialize the partition again."""
        name, problem = next(iter(damaged.items()))
        more = f", and {len(damaged) - 1} more are damaged" if len(damaged) > 1 else ""
        again = "materialize the partition again, which takes over nothing that is damaged"
        super().__init__(
            f"nothing is made of {what}: {name} {problem}{more}. Restore the file from a backup, "
            f"or {otherwise or again}"
        )


def chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's content. Raises ``OSError``."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def problem(content: Iterable[bytes], item: Mapping[str, Any]) -> tuple[int, str | None]:
    """Bytes that were read, and what is wrong with them; ``item``: a manifest's record of the file.

    Reading ``content`` may raise ``OSError``.
    """
    digest, size = sha256(), 0
    try:
        for chunk in content:
            digest.update(chunk)
            size += len(chunk)
    except FileNotFoundError:
        return size, "is missing"
    except OSError as error:
        return size, unreadable(error)
    if size != item["bytes"]:
        return size, f"has {size:,} bytes, not {item['bytes']:,}"
    if digest.hexdigest() != item["sha256"]:
        return size, "has another SHA-256 than when it was published"
    return size, None


def unreadable(error: Exception) -> str:
    return f"cannot be read: {type(error).__name__}: {error}"


def damaged_files(folder: Path, names: str = "*", but: Collection[str] = ()) -> dict[str, str]:
    """File -> its problem, for the damaged files of a partition's folder.

    Compared are those whose names match ``names``, and none of ``but``. They are read side by side.
    """
    while True:
        manifest = Manifest.read(folder)
        wanted = [item for item in manifest.files if is_wanted(item["name"], names, but)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = list(pool.map(lambda item: _problem_in(folder, item), wanted))
        found = {item["name"]: wrong for item, wrong in zip(wanted, problems, strict=True) if wrong}
        # Another process may have replaced the folder meanwhile.
        if not found or Manifest.read(folder) == manifest:
            return found


def _problem_in(folder: Path, item: Mapping[str, Any]) -> str | None:
    path, sha256 = folder / item["name"], item["sha256"]
    try:
        about = path.stat()
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else unreadable(error)
    if about.st_size == item["bytes"] and DIGESTED.has(about, sha256):
        return None
    wrong = problem(chunks(path), item)[1]
    if wrong is None:
        DIGESTED.note(about, sha256)
    return wrong


def link_others(folder: Path, manifest: Manifest, damaged: Collection[str], to: Path) -> None:
    """Give the folder ``to`` those files of a manifest that are here, but for damaged ones."""
    for item in manifest.files:
        if item["name"] not in damaged and (folder / item["name"]).exists():
            target = to / item["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(folder / item["name"], target)
