"""The committed inputs: pictures as the web serves them, captions, and what becomes of each pair.

``training/sample_images.py`` writes ``data/plan.json`` and ``data/images.zip``, and
``training/sample_copies.py`` what in them are copies. Every pair is scored by the pipeline's own
code. What does not belong here: anything about the model.
"""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Final

DATA: Final = Path(str(resources.files("laion_assets"))) / "sample_crawl" / "data"
KEPT: Final = "kept"
COPY: Final = "copy"
"""Group of the pairs whose picture is an altered copy of another one."""
COPIED: Final = "copies"
"""Folder of these pictures: a copy of ``STYLE/NAME.jpg`` is ``copies/KIND/STYLE/NAME.jpg``, or has
the suffix of its own format."""


@dataclass(frozen=True)
class PlannedPair:
    """A picture and an English text that goes with it.

    ``reason`` is the subset stage's verdict: ``kept`` or one of that stage's reject reasons.
    ``group`` is the pair's purpose: matched, mismatched, marked (the text has characters that HTML
    writes as entities), accented, other_text (for a picture that a matched pair has, too),
    boundary (in bytes), long (in text), copy (of a matched pair's picture, altered), and
    ``safety_…``, the branches of the safety rule.
    ``similarity`` and the tag ``nsfw`` are those of the shipped CLIP.
    """

    group: str
    file: str
    text: str
    reason: str
    similarity: float
    nsfw: str


@dataclass(frozen=True)
class ForeignText:
    """A picture's text in another language; ``language`` is ISO 639-1, or ``un`` for none."""

    file: str
    text: str
    language: str


class Pictures:
    """The committed pictures by name; several threads may read at once."""

    def __init__(self, path: Path = DATA / "images.zip") -> None:
        self._archive = zipfile.ZipFile(path)
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return self._archive.namelist()

    def read(self, name: str) -> bytes:
        """Return a picture's encoded bytes. Raises ``KeyError`` for an unknown name."""
        with self._lock:
            return self._archive.read(name)


class Plan:
    """The typed content of ``plan.json``."""

    def __init__(self, path: Path = DATA / "plan.json") -> None:
        self._content: dict[str, Any] = json.loads(path.read_text("utf-8"))

    @property
    def threshold(self) -> float:
        """The model's similarity threshold, by which ``reason`` was decided."""
        return float(self._content["threshold"])

    @cached_property
    def pairs(self) -> list[PlannedPair]:
        return [PlannedPair(**row) for row in self._content["pairs"]]

    @cached_property
    def foreign(self) -> list[ForeignText]:
        return [ForeignText(**row) for row in self._content["foreign"]]

    def group(self, name: str) -> list[PlannedPair]:
        """Pairs of one group, in order."""
        return [pair for pair in self.pairs if pair.group == name]

    def original(self, file: str) -> str:
        """The picture that a file is a copy of; the file itself if it is none.

        Raises ``KeyError`` if the original is not among the pictures.
        """
        if kind_of_copy(file) is None:
            return file
        return self._by_stem[str(PurePosixPath(*PurePosixPath(file).parts[2:]).with_suffix(""))]

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        return {
            str(PurePosixPath(file).with_suffix("")): file for file in self._content["pictures"]
        }

    def size(self, file: str) -> tuple[int, int] | None:
        """Width and height of a picture in pixels; None if the file is not a picture."""
        entry = self._content["pictures"].get(file)
        return (entry["width"], entry["height"]) if entry else None


def kind_of_copy(file: str) -> str | None:
    """The kind of copy that a picture is, one of ``copies.COPIES``; None if it is none."""
    folder, _, rest = file.partition("/")
    return rest.partition("/")[0] if folder == COPIED else None


class Supply:
    """Matched pairs that the subset keeps, each handed out once."""

    def __init__(self, pairs: list[PlannedPair]) -> None:
        self._left: Iterator[PlannedPair] = iter(pairs)

    def take(self) -> PlannedPair:
        """Hand out the next pair. Raises ``StopIteration`` after the last one."""
        return next(self._left)

    def rest(self) -> list[PlannedPair]:
        """Hand out all pairs that are left."""
        return list(self._left)
