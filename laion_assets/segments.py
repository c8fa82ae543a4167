"""The key of one partition: a crawl and the number of one of its segments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CRAWL_NAME: Final = re.compile(r"CC-MAIN-\d{4}(?:-\d{2}){1,2}")
_SEGMENT: Final = re.compile(r"\d{2}")

EVERY_HIVE: Final = "crawl=*/segment=*"
"""Pattern of paths that matches :attr:`SegmentKey.hive` of every segment."""


@dataclass(frozen=True, order=True)
class SegmentKey:
    """`crawl` as Common Crawl names it; `segment` its place among the crawl's sorted ids."""

    crawl: str
    segment: str

    def __post_init__(self) -> None:
        if not CRAWL_NAME.fullmatch(self.crawl):
            raise ValueError(f"{self.crawl!r} is not a crawl's name like CC-MAIN-2021-04")
        if not _SEGMENT.fullmatch(self.segment):
            raise ValueError(f"{self.segment!r} is not a segment's number like 07")

    def __str__(self) -> str:
        return f"{self.crawl}|{self.segment}"

    @property
    def hive(self) -> str:
        return f"crawl={self.crawl}/segment={self.segment}"

    @classmethod
    def of_folder(cls, folder: Path) -> SegmentKey:
        """The key whose :attr:`hive` path the folder's ends with."""
        return cls(folder.parent.name.removeprefix("crawl="), folder.name.removeprefix("segment="))

    @classmethod
    def parse(cls, key: str) -> SegmentKey:
        crawl, _, segment = key.partition("|")
        return cls(crawl, segment)


def segment_names(count: int) -> list[str]:
    """``["00", "01", ...]``: the segment dimension of a crawl with ``count`` segments."""
    return [f"{number:02d}" for number in range(count)]
