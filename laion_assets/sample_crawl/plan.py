"""The committed inputs: pictures as the web serves them, captions, and what becomes of each pair.

``data/plan.json`` and ``data/images.zip`` are written by ``training/sample_images.py``, which
scores every pair on the pipeline's own path. Nothing here knows the model.
"""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

DATA: Final = Path(str(resources.files("laion_assets"))) / "sample_crawl" / "data"
KEPT: Final = "kept"


@dataclass(frozen=True)
class PlannedPair:
    """A picture and an English text said of it.

    ``reason`` is what the subset stage makes of it: ``kept`` or one of that stage's reasons.
    ``group`` says what it is for: matched, mismatched, marked (the text has characters that HTML
    writes as entities), accented, other_text (said of a picture that a matched pair has too),
    boundary (in bytes), long (in text), and ``safety_…``, the branches of the safety rule.
    ``similarity`` and the tag ``nsfw`` are as the shipped CLIP gave them.
    """

    group: str
    file: str
    text: str
    reason: str
    similarity: float
    nsfw: str


@dataclass(frozen=True)
class ForeignText:
    """A text in another language, of a picture; ``language`` as ISO 639-1, ``un`` for none."""

    file: str
    text: str
    language: str


class Pictures:
    """The committed pictures by name; safe to use from several threads."""

    def __init__(self, path: Path = DATA / "images.zip") -> None:
        self._archive = zipfile.ZipFile(path)
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return self._archive.namelist()

    def read(self, name: str) -> bytes:
        """The encoded bytes. Raises ``KeyError`` for a name that is not there."""
        with self._lock:
            return self._archive.read(name)


class Plan:
    """What ``plan.json`` holds, typed."""

    def __init__(self, path: Path = DATA / "plan.json") -> None:
        self._content: dict[str, Any] = json.loads(path.read_text("utf-8"))

    @property
    def threshold(self) -> float:
        """The model's, under which ``reason`` was decided."""
        return float(self._content["threshold"])

    @cached_property
    def pairs(self) -> list[PlannedPair]:
        return [PlannedPair(**row) for row in self._content["pairs"]]

    @cached_property
    def foreign(self) -> list[ForeignText]:
        return [ForeignText(**row) for row in self._content["foreign"]]

    def group(self, name: str) -> list[PlannedPair]:
        return [pair for pair in self.pairs if pair.group == name]

    def size(self, file: str) -> tuple[int, int] | None:
        """Width and height of a picture in pixels; None for a file that is no picture."""
        entry = self._content["pictures"].get(file)
        return (entry["width"], entry["height"]) if entry else None


class Supply:
    """Matched pairs that the subset keeps, each handed out once."""

    def __init__(self, pairs: list[PlannedPair]) -> None:
        self._left: Iterator[PlannedPair] = iter(pairs)

    def take(self) -> PlannedPair:
        return next(self._left)

    def rest(self) -> list[PlannedPair]:
        return list(self._left)
