"""A crawl of one segment: captioned drawings on many hosts, on pages with other links.

A tenth of the pages is not English, and a tenth of the captions does not fit the picture. Hosts
have the shares of the good ones of :mod:`benchmarks.download.web`, the largest 8 %.
"""

from __future__ import annotations

import gzip
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any, Final

from benchmarks.download.web import GOOD_HOSTS, host_shares
from laion_assets.files import write_json, write_text
from laion_assets.sample_crawl import drawings
from laion_assets.sample_crawl.records import Link, Page, WatFile
from laion_assets.sample_crawl.server import PICTURES, ROUTES

CRAWL: Final = "CC-MAIN-2000-26"
_SEGMENT_ID: Final = "961000000000.1"
_DATE: Final = "2000-06-26T06:00:00Z"
_WAT_FILES: Final = 4
_PER_PAGE: Final = 5
_FOREIGN: Final = "Ein altes Haus mit einem kleinen Garten am Fluss, Bild Nummer {}"


def build_crawl(out: Path, n: int) -> None:
    """Write the crawl of ``n`` pictures below ``out``, unless it is there; a fifth are drawn."""
    if (out / "made.txt").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    chance = random.Random(26)
    kinds = drawings.every_drawing()
    drawn = [chance.choice(kinds) for _ in range(-(-n // 5))]
    with zipfile.ZipFile(out / PICTURES, "w", zipfile.ZIP_STORED) as archive:
        for number, drawing in enumerate(drawn):
            archive.writestr(f"drawn/{number:06d}.jpg", drawings.render(drawing, number))
    hosts = chance.choices(range(GOOD_HOSTS), host_shares(GOOD_HOSTS), k=n)
    routes: dict[str, dict[str, Any]] = {}
    links = []
    for number, of_host in enumerate(hosts):
        which = number % len(drawn)
        host = f"www{of_host}.pictures.sample.test"
        path = f"/photos/{number:06d}.jpg"
        routes.setdefault(host, {})[path] = {"file": f"drawn/{which:06d}.jpg"}
        shown = drawn[which] if chance.random() < 0.9 else chance.choice(kinds)
        links.append(Link("IMG@/src", f"http://{host}{path}", shown.caption(chance)))
    _write_wats(out, links, chance)
    write_json(out / ROUTES, routes)
    write_text(out / "made.txt", f"{n}\n")


def wat_files(crawl: Path) -> list[Path]:
    return sorted(crawl.glob("crawl-data/*/segments/*/wat/*.gz"))


def _write_wats(out: Path, links: list[Link], chance: random.Random) -> None:
    paths = []
    for place in range(_WAT_FILES):
        wat = WatFile(CRAWL, f"CC-MAIN-20000626060000-20000626090000-{place:05d}.warc.gz", _DATE)
        wat.write_warcinfo()
        for first in range(place * _PER_PAGE, len(links), _WAT_FILES * _PER_PAGE):
            pictures = links[first : first + _PER_PAGE]
            if chance.random() < 0.1:
                texts = [_FOREIGN.format(first + row) for row in range(len(pictures))]
                pictures = [
                    Link("IMG@/src", link.url, text)
                    for link, text in zip(pictures, texts, strict=True)
                ]
            others = [Link("A@/href", f"/album/{chance.randrange(10**6)}") for _ in range(40)]
            others += [Link("IMG@/src", "/static/logo.png", alt) for alt in ("", None, "logo")]
            url = f"http://www.album{first % 97}.sample.test/page/{first}.html"
            wat.write_page(Page(url, f"Album {first}", [*others, *pictures]))
        path = f"crawl-data/{CRAWL}/segments/{_SEGMENT_ID}/wat/{wat.name}"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(wat.to_bytes())
        paths.append(path)
    listing = "".join(f"{path}\n" for path in paths).encode()
    (out / "crawl-data" / CRAWL / "wat.paths.gz").write_bytes(gzip.compress(listing, mtime=0))
    write_json(
        out / "collinfo.json",
        [
            {
                "id": CRAWL,
                "name": "Segment crawl, June 2000 Index",
                "timegate": f"https://index.sample.test/{CRAWL}/",
                "cdx-api": f"https://index.sample.test/{CRAWL}-index",
                "from": _DATE[:19],
                "to": f"{_DATE[:10]}T23:59:59",
            }
        ],
    )
