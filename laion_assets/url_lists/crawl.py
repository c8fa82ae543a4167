"""A URL list as a crawl: its segments are ranges of rows, counted through its files in order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import duckdb

from laion_assets.crawl.source import CrawlSegment, NoSuchSegmentError
from laion_assets.errors import PermanentError
from laion_assets.layout import segment_names
from laion_assets.options import versioned
from laion_assets.url_lists.extract import ExtractRange, RowRange, carried_schema
from laion_assets.url_lists.files import ListFile, UrlListError, find_files
from laion_assets.url_lists.options import UrlListOptions
from laion_assets.url_lists.rows import READING, open_rows
from laion_assets.url_lists.url_list import KIND, ROWS_PER_RANGE, check_captions, spans

_MOST_SEGMENTS: Final = 100
"""A segment's number has two digits."""


class ListChangedError(PermanentError, RuntimeError):
    """A list's files are no longer those that its segment's manifest was made of: that must be made
    again first."""


class ListCrawl:
    """A list as :class:`laion_assets.crawl.source.CrawlSource` has a crawl."""

    kind: Final = KIND

    def __init__(self, options: UrlListOptions) -> None:
        self.options = options

    def files(self) -> list[ListFile]:
        """The list's files. Raises :class:`~laion_assets.url_lists.files.UrlListError`."""
        return find_files(self.options.files, self.options)

    def count(self, file: ListFile) -> int:
        """Number of a file's rows; of a file that is not parquet, it is read for that.

        Raises :class:`~laion_assets.url_lists.files.UrlListError` for a file without captions,
        unless the list is of images alone.
        """
        with open_rows(file, self.options) as rows:
            if self.options.captions:
                check_captions(file, rows.columns)
            return rows.count()

    def segments(self, files: Sequence[ListFile], rows: Sequence[int]) -> list[CrawlSegment]:
        """The list's segments, from its files and the number of rows of each.

        Raises :class:`~laion_assets.url_lists.files.UrlListError` for more than 100 segments.
        """
        size, total = self.options.rows_per_segment, sum(rows)
        count = -(-total // size)
        if count > _MOST_SEGMENTS:
            raise UrlListError(
                f"{self.options.crawl} has {total:,} rows, {count:,} segments of {size:,}: set "
                f"rows_per_segment to {-(-total // _MOST_SEGMENTS):,} or more"
            )
        ends = list(accumulate(rows))
        return [
            self._segment(files, rows, ends, number, place * size)
            for place, number in enumerate(segment_names(count))
        ]

    def present(self) -> list[CrawlSegment]:
        """The list's segments as it is now, after counting its rows."""
        files = self.files()
        return self.segments(files, [self.count(file) for file in files])

    def segment(self, crawl: str, number: str) -> CrawlSegment:
        """One segment of the list as it is now; one beyond its end has no rows."""
        segments = self.present()
        if int(number) < len(segments):
            return segments[int(number)]
        if int(number) >= _MOST_SEGMENTS:
            raise NoSuchSegmentError(f"{crawl} has no segment {number}")
        return self.beyond(number)

    def beyond(self, number: str) -> CrawlSegment:
        """A segment beyond the list's end, where it may have had rows before."""
        return CrawlSegment(number, self._id({}, ()), ())

    def taken(self, segment: CrawlSegment) -> list[str]:
        """All ranges of a segment, in order."""
        return list(segment.wat_files)

    def fetch(self, _range: str, _to: Path) -> None:
        """Fetch nothing: ranges are read where they are."""

    def extract(self, ranges: Iterable[str], segment_id: str) -> ExtractRange:
        """What makes pairs of the ranges that a segment's manifest names.

        Raises :class:`ListChangedError` if the files are no longer those of the manifest.
        """
        files = {file.name: file for file in self.files()}
        parsed = [RowRange.parse(text) for text in ranges]
        if not {of.file for of in parsed} <= files.keys() or self._id(files, parsed) != segment_id:
            raise ListChangedError(
                f"the files of {self.options.crawl} have changed: materialize wat_manifest again"
            )
        found = []
        for name in dict.fromkeys(of.file for of in parsed):
            with open_rows(files[name], self.options) as rows:
                found.append((rows.schema, rows.columns))
        return ExtractRange(files, self.options, carried_schema(found))

    def _segment(
        self,
        files: Sequence[ListFile],
        rows: Sequence[int],
        ends: Sequence[int],
        number: str,
        first: int,
    ) -> CrawlSegment:
        ranges: list[RowRange] = []
        for file, n, end in zip(files, rows, ends, strict=True):
            begin = max(first - (end - n), 0)
            stop = min(first + self.options.rows_per_segment - (end - n), n)
            if begin < stop:
                size = ROWS_PER_RANGE if file.format == "parquet" else n
                ranges += [
                    RowRange(file.name, low, None if high == n else high)
                    for low, high in spans(begin, stop, size)
                ]
        ids = self._id({file.name: file for file in files}, ranges)
        return CrawlSegment(number, ids, tuple(map(str, ranges)))

    @property
    def counted_by(self) -> str:
        """Digest of what, beside a file, the number of its rows depends on."""
        return _digest([READING, duckdb.__version__, self._reading()])

    def _reading(self) -> dict[str, Any]:
        options = versioned(self.options)
        for apart in ("name", "files", "rows_per_segment"):
            options.pop(apart)
        if options["captions"]:
            del options["captions"]  # as before there was a choice: no row is read otherwise
        return options

    def _id(self, files: Mapping[str, ListFile], ranges: Sequence[RowRange]) -> str:
        """Digest of what a segment is made of: its ranges, their files' versions, and how they are
        read."""
        return _digest([self._reading(), [(str(of), files[of.file].version) for of in ranges]])


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]


def list_crawl(lists: Iterable[UrlListOptions], crawl: str) -> ListCrawl:
    """The list that is a crawl.

    Raises :class:`~laion_assets.url_lists.files.UrlListError` if the settings name none.
    """
    for options in lists:
        if options.crawl == crawl:
            return ListCrawl(options)
    raise UrlListError(f"the settings have no list whose crawl is {crawl} ([[lists]] name)")
