"""Keys of partitions: a crawl and the number of one of its segments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CRAWL_NAME: Final = re.compile(r"CC-MAIN-\d{4}(?:-\d{2}){1,2}")
"""Pattern of the names that Common Crawl gives its crawls."""
_SEGMENT: Final = re.compile(r"\d{2}")

EVERY_HIVE: Final = "crawl=*/segment=*"
"""Pattern of paths that matches :attr:`SegmentKey.hive` of every segment."""


@dataclass(frozen=True, order=True)
class SegmentKey:
    """One segment of one crawl.

    ``crawl``: the name that Common Crawl gives it. ``segment``: two digits, the segment's position
    among the crawl's sorted segment ids. Raises ``ValueError`` for anything else.
    """

    crawl: str
    segment: str

    def __post_init__(self) -> None:
        if not CRAWL_NAME.fullmatch(self.crawl):
            raise ValueError(f"{self.crawl!r} is not a crawl name like CC-MAIN-2021-04")
        if not _SEGMENT.fullmatch(self.segment):
            raise ValueError(f"{self.segment!r} is not a segment number like 07")

    def __str__(self) -> str:
        return f"{self.crawl}|{self.segment}"

    @property
    def hive(self) -> str:
        """The path of the segment's folder under an asset's, in Hive's notation."""
        return f"crawl={self.crawl}/segment={self.segment}"

    @classmethod
    def of_folder(cls, folder: Path) -> SegmentKey:
        """Return the key of a folder whose path ends with the key's :attr:`hive`."""
        return cls(folder.parent.name.removeprefix("crawl="), folder.name.removeprefix("segment="))

    @classmethod
    def parse(cls, key: str) -> SegmentKey:
        """Return the key whose ``str`` this is. Raises ``ValueError`` for any other text."""
        crawl, _, segment = key.partition("|")
        return cls(crawl, segment)


def segment_names(count: int) -> list[str]:
    """Return ``["00", "01", ...]``, the segment numbers of a crawl with ``count`` segments."""
    return [f"{number:02d}" for number in range(count)]
