"""A larger sample crawl of drawings, for uses that need more pairs than the committed pictures.

It has pages, lists and image hosts like any crawl, and the pipeline treats it as one. No cases are
planted and no outcome is prescribed: the subset leaves out what the model does not recognise. The
same number of drawings gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from laion_assets.files import atomic_path, sha256_file, write_json, write_text
from laion_assets.sample_crawl import drawings
from laion_assets.sample_crawl.drafts import picture_url
from laion_assets.sample_crawl.records import Link, Page, WatFile
from laion_assets.sample_crawl.server import PICTURES, ROUTES
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

CRAWL: Final = "CC-MAIN-2000-13"
SEGMENT_IDS: Final = ("954115200000.21", "954115200417.8")
DRAWINGS: Final = 6_000
_DATE: Final = "2000-03-27T06:00:00Z"
_SPAN: Final = "20000327000000-20000327030000"
_WAT_FILES: Final = 2
_PER_PAGE: Final = 20
_SEED: Final = 20000113
_MARKER: Final = "drawn.txt"


def build_drawn_crawl(out: Path, n: int = DRAWINGS) -> None:
    """Write the crawl of ``n`` drawings below ``out``, unless it is up to date."""
    marker, version = out / _MARKER, f"{_version()} {n}\n"
    if marker.exists() and marker.read_text("utf-8") == version:
        return
    shutil.rmtree(out, ignore_errors=True)
    rng = random.Random(_SEED)
    kinds = drawings.every_drawing()
    routes: dict[str, dict[str, Any]] = {}
    pages: list[list[tuple[str, str]]] = []
    progress = Progress("drawing", "pictures", n, logger)
    out.mkdir(parents=True)
    with (
        atomic_path(out / PICTURES) as beside,
        zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive,
    ):
        for number in range(n):
            if number % _PER_PAGE == 0:
                pages.append([])
            drawing = rng.choice(kinds)
            file = f"drawn/{number:06d}.jpg"
            # By name alone, an entry would get the time of the build.
            archive.writestr(zipfile.ZipInfo(file), drawings.render(drawing, _SEED + number))
            parts = urlsplit(picture_url(file))
            routes.setdefault(parts.hostname or "", {})[parts.path] = {"file": file}
            pages[-1].append((picture_url(file), drawing.caption(rng)))
            progress.advance()
    _write_lists(out, pages)
    write_json(out / ROUTES, routes)
    write_text(marker, version)


def _version() -> str:
    """Digest of the code that decides the bytes."""
    files = (Path(drawings.__file__), Path(__file__))
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()[:16]


def _write_lists(out: Path, pages: list[list[tuple[str, str]]]) -> None:
    """Write the WAT files of the pages, and the lists of files and crawls."""
    paths = []
    files = [(segment, number) for segment in SEGMENT_IDS for number in range(_WAT_FILES)]
    for place, (segment, _) in enumerate(files):
        wat = WatFile(CRAWL, f"CC-MAIN-{_SPAN}-{place:05d}.warc.gz", _DATE)
        wat.write_warcinfo()
        for page in _pages(pages, place, len(files)):
            wat.write_page(page)
        path = f"crawl-data/{CRAWL}/segments/{segment}/wat/{wat.name}"
        with atomic_path(out / path) as beside:
            beside.write_bytes(wat.to_bytes())
        paths.append(path)
    listing = out / "crawl-data" / CRAWL / "wat.paths.gz"
    with atomic_path(listing) as beside:
        beside.write_bytes(gzip.compress("".join(f"{path}\n" for path in paths).encode(), mtime=0))
    write_json(
        out / "collinfo.json",
        [
            {
                "id": CRAWL,
                "name": "Drawn crawl, March 2000 Index",
                "timegate": f"https://index.sample.test/{CRAWL}/",
                "cdx-api": f"https://index.sample.test/{CRAWL}-index",
                "from": _DATE[:19],
                "to": f"{_DATE[:10]}T23:59:59",
            }
        ],
    )


def _pages(pages: list[list[tuple[str, str]]], place: int, files: int) -> Iterator[Page]:
    """Yield the pages of one of ``files`` WAT files, by its place."""
    for number in range(place, len(pages), files):
        links = [Link("IMG@/src", url, alt=caption) for url, caption in pages[number]]
        url = f"https://www.drawings.sample.test/album/{number}.html"
        yield Page(url, f"Drawings, album {number}", links)
