"""Read Common Crawl's layout: the list of crawls, their segments, and their WAT files.

``collinfo.json`` lists the crawls; ``crawl-data/<crawl>/wat.paths.gz`` the WAT files of one, as
``crawl-data/<crawl>/segments/<id>/wat/<name>.warc.wat.gz``. Both roots are fsspec URLs: https,
s3 (``s3://commoncrawl/``), or a folder.
"""

from __future__ import annotations

import gzip
import math
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import aiohttp
import fsspec
import msgspec
from pydantic import BaseModel, Field

from laion_assets.crawl.transfer import (
    SLOW_DOWN,
    RefusedError,
    SlowDownError,
    Throttle,
    Transfer,
)
from laion_assets.errors import PermanentError, TransientError
from laion_assets.files import atomic_path
from laion_assets.layout import CRAWL_NAME
from laion_assets.options import MASKED, OPERATIONAL, Options

T = TypeVar("T")

_HTTP: Final = ("http://", "https://")
_LIST_TIMEOUT_S: Final = 10.0
_STREAMED: Final[dict[str, Any]] = {
    "block_size": 0,
    "size": 1,
    "timeout": aiohttp.ClientTimeout(total=_LIST_TIMEOUT_S),
}
"""How a list is opened over HTTP: not in ranges, because its server may not know its size. If any
size is given, fsspec sends no HEAD request first."""


_THROTTLE: Final = Throttle()
"""One for the process: a source throttles addresses, not requests."""


class CrawlSourceError(TransientError, RuntimeError):
    """The crawl source could not be read; the message names the URL and the cause."""


class CrawlNotReadyError(CrawlSourceError):
    """A crawl is listed, but its ``wat.paths.gz`` does not exist (yet)."""


class NoSuchSegmentError(CrawlSourceError, PermanentError):
    """The crawl has no segment of that number."""


class CrawlSourceOptions(Options):
    """Where the crawls are, and how much of them this deployment uses."""

    collinfo_url: Annotated[str, OPERATIONAL] = Field(
        "https://index.commoncrawl.org/collinfo.json", description="URL of the list of crawls"
    )
    data_url: Annotated[str, OPERATIONAL] = Field(
        "https://data.commoncrawl.org/",
        description="URL above crawl-data/; inside AWS, s3://commoncrawl/",
    )
    segments_per_crawl: int = Field(100, ge=1, le=100, description="Segments of a crawl")
    wat_files_per_segment: int | None = Field(
        None, ge=1, description="Use the first N WAT files of each segment; null means all"
    )
    wat_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Use this share of each segment's WAT files, drawn with a fixed seed",
    )
    attempts: Annotated[int, OPERATIONAL] = Field(
        5, ge=1, le=20, description="Attempts per request"
    )
    back_off_s: Annotated[float, OPERATIONAL] = Field(
        0.5,
        ge=0,
        description="Wait in seconds before the second attempt; doubled for each further one",
    )
    patience_s: Annotated[float, OPERATIONAL] = Field(
        1800.0,
        ge=0,
        description="How long, in seconds, a source is waited for that asks for fewer requests"
        " (HTTP 403, 429, 503; SlowDown)",
    )
    storage_options: Annotated[dict[str, str], OPERATIONAL] = Field(
        default_factory=dict,
        description="Options for fsspec, such as endpoint_url; keys belong into the environment",
        json_schema_extra=MASKED,
    )


class _Listed(msgspec.Struct):
    """One entry of ``collinfo.json``."""

    id: str
    name: str


@dataclass(frozen=True)
class CrawlInfo:
    """A listed crawl: ``CC-MAIN-2021-04``, and its title for people."""

    name: str
    title: str


class Listing(BaseModel, frozen=True):
    """The list of crawls as it was read, and how to ask its server whether it has changed."""

    crawls: tuple[str, ...]
    """Newest first."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of a conditional HTTP request for it; empty if the server sent no validator."""
    ukey: str = ""
    """On other file systems: fsspec's digest of the file's size, time and ETag."""


@dataclass(frozen=True)
class CrawlSegment:
    """One segment of a crawl: its number (position among the sorted ids), its id and WAT paths."""

    number: str
    segment_id: str
    wat_files: tuple[str, ...]


class CrawlSource:
    """Reads a crawl source. Picklable, so that worker processes can fetch, too."""

    kind: Final = "WAT files"
    """What a segment is made of, for messages."""

    def __init__(self, options: CrawlSourceOptions) -> None:
        self.options = options

    def crawls(self) -> list[CrawlInfo]:
        """All listed crawls, newest first. Raises :class:`CrawlSourceError`.

        Crawls before 2013 have other names and no WAT files in this layout, and are left out.
        """
        url = self.options.collinfo_url
        return _crawls_of(url, self._retry(url, lambda: self._read(url)))

    def listing(self, known: Listing | None = None) -> Listing:
        """The names of all listed crawls; ``known`` itself if the list has not changed since.

        Over HTTP this is a conditional request (RFC 9110, section 13): the server does not send an
        unchanged list again. Raises :class:`CrawlSourceError`.
        """
        url = self.options.collinfo_url
        look = self._ask if url.startswith(_HTTP) else self._look
        try:
            return self._retry(url, lambda: look(url, known))
        except FileNotFoundError as error:
            raise CrawlSourceError(f"{url} does not exist") from error

    def _ask(self, url: str, known: Listing | None) -> Listing:
        headers = known.headers if known else {}
        filesystem, path = fsspec.core.url_to_fs(url, **self.options.storage_options)
        with filesystem.open(path, "rb", **_STREAMED, headers=headers) as stream:
            if known and stream.r.status == 304:
                return known
            raw, answered = stream.read(), stream.r.headers
        names = tuple(info.name for info in _crawls_of(url, raw))
        return Listing(crawls=names, headers=_conditions(answered))

    def _look(self, url: str, known: Listing | None) -> Listing:
        filesystem, path = fsspec.core.url_to_fs(url, **self.options.storage_options)
        filesystem.invalidate_cache()
        ukey = filesystem.ukey(path)
        if known and known.ukey == ukey:
            return known
        names = tuple(info.name for info in _crawls_of(url, self._read(url)))
        return Listing(crawls=names, ukey=ukey)

    def segments(self, crawl: str) -> list[CrawlSegment]:
        """The crawl's segments in the order of their ids.

        Raises :class:`CrawlNotReadyError` if the crawl's paths are not published yet.
        """
        url = self._url(f"crawl-data/{crawl}/wat.paths.gz")
        try:
            raw = self._retry(url, lambda: self._read(url))
        except FileNotFoundError as error:
            raise CrawlNotReadyError(f"{url} does not exist (yet)") from error
        try:
            paths = gzip.decompress(raw).decode("ascii").split()
            by_id: dict[str, list[str]] = {}
            for path in paths:
                by_id.setdefault(path.split("/segments/")[1].split("/")[0], []).append(path)
        except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
            raise CrawlSourceError(f"{url} is not a list of WAT paths: {error!r}") from error
        return [
            CrawlSegment(f"{number:02d}", segment_id, tuple(sorted(by_id[segment_id])))
            for number, segment_id in enumerate(sorted(by_id))
        ]

    def segment(self, crawl: str, number: str) -> CrawlSegment:
        """One segment of a crawl. Raises :class:`NoSuchSegmentError`."""
        segments = self.segments(crawl)
        for segment in segments:
            if segment.number == number:
                return segment
        raise NoSuchSegmentError(f"{crawl} has {len(segments)} segments, and no segment {number}")

    def taken(self, segment: CrawlSegment) -> list[str]:
        """The WAT files of the segment that this deployment uses, in order."""
        files: Sequence[str] = segment.wat_files
        if self.options.wat_fraction < 1:
            count = math.ceil(len(files) * self.options.wat_fraction)
            files = sorted(random.Random(segment.segment_id).sample(files, count))
        return list(files[: self.options.wat_files_per_segment])

    def fetch(self, wat_file: str, to: Path) -> None:
        """Copy one WAT file to the local path ``to``, whole or not at all.

        Raises :class:`CrawlSourceError`, and ``FileNotFoundError`` if the source does not have it.
        """
        url = self._url(wat_file)
        with atomic_path(to) as beside:
            if url.startswith(_HTTP):
                with beside.open("w+b") as stream:
                    self._retry(url, Transfer(url, stream), self.options.patience_s)
                return
            filesystem, path = fsspec.core.url_to_fs(url, **self.options.storage_options)
            self._retry(
                url, lambda: filesystem.get_file(path, str(beside)), self.options.patience_s
            )

    def _url(self, path: str) -> str:
        return f"{self.options.data_url.rstrip('/')}/{path}"

    def _read(self, url: str) -> bytes:
        filesystem, path = fsspec.core.url_to_fs(url, **self.options.storage_options)
        with filesystem.open(path, "rb", **(_STREAMED if url.startswith(_HTTP) else {})) as stream:
            data: bytes = stream.read()
        return data

    def _retry(self, url: str, call: Callable[[], T], patience_s: float = 0) -> T:
        """Call again after errors that may pass; wait for a source that asks for fewer requests.

        An attempt that got somewhere does not count.
        """
        failures, asked_first = 0, None
        while True:
            _THROTTLE.wait()
            try:
                result = call()
            except (FileNotFoundError, CrawlSourceError):
                raise
            except Exception as error:
                slow_down = _slow_down(url, error) if patience_s else None
                if slow_down is not None:
                    asked_first = asked_first or time.monotonic()
                    if time.monotonic() - asked_first < patience_s:
                        _THROTTLE.slow_down(slow_down, max(self.options.back_off_s, 0.01))
                        continue
                failures = 0 if getattr(error, "progress", False) else failures + 1
                final = slow_down is not None or isinstance(error, RefusedError)
                if final or failures >= self.options.attempts:
                    cause = str(error) or type(error).__name__
                    raise CrawlSourceError(
                        f"{url} could not be read in {failures} attempts: {cause}"
                    ) from error
                self._back_off(failures)
            else:
                _THROTTLE.answered()
                return result

    def _back_off(self, failures: int) -> None:
        time.sleep(self.options.back_off_s * 2.0 ** max(failures - 1, 0) * random.uniform(0.5, 1.5))


def _slow_down(url: str, error: Exception) -> SlowDownError | None:
    """The error as a request to slow down, if it is one, whatever transport it is of."""
    if isinstance(error, SlowDownError):
        return error
    if getattr(error, "status", None) in SLOW_DOWN or "SlowDown" in str(error):
        return SlowDownError(f"{url}: {error}")
    return None


def _crawls_of(url: str, raw: bytes) -> list[CrawlInfo]:
    try:
        listed = msgspec.json.decode(raw, type=list[_Listed])
    except msgspec.DecodeError as error:
        raise CrawlSourceError(f"{url} is not a list of crawls: {error}") from error
    named = [CrawlInfo(item.id, item.name) for item in listed if CRAWL_NAME.fullmatch(item.id)]
    return sorted(named, key=lambda info: info.name, reverse=True)


def _conditions(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of the next conditional request, from an answer's headers."""
    if etag := headers.get("ETag"):
        return {"If-None-Match": etag}
    modified, now = headers.get("Last-Modified"), headers.get("Date")
    if not modified or not now:
        return {}
    try:
        age = parsedate_to_datetime(now) - parsedate_to_datetime(modified)
    except (ValueError, OverflowError):
        return {}
    # Times are whole seconds, in which a list may change twice (RFC 9110, section 8.8.2.2).
    return {"If-Modified-Since": modified} if age >= timedelta(seconds=1) else {}
