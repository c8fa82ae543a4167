"""Our contestants, one per process: ``python -m benchmarks.wat.ours WAY WAT``.

Prints a JSON line.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from isal import igzip

from laion_assets.funnel import StageCounts
from laion_assets.pairs.extract import extract_wat, pairs_of
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.urls import Base, base_url, image_urls
from laion_assets.schemas import uid_of
from laion_assets.wat.pages import IMAGE_PATH, read_pages
from laion_assets.wat.records import read_records


def inflate(wat: Path) -> int:
    """Inflate with igzip, and nothing else; return the number of bytes."""
    size = 0
    with igzip.open(wat, "rb") as stream:  # type: ignore[no-untyped-call]
        while piece := stream.read(1 << 20):
            size += len(piece)
    return size


def read(wat: Path) -> int:
    """Read whole records; return their number."""
    with wat.open("rb", buffering=0) as stream:
        return sum(1 for _ in read_records(stream))


_detecting = [0.0]


def cld2(wat: Path) -> int:
    """Ask CLD2 for the language of each text that all rules would ask it for, and nothing else."""
    import pycld2

    rules, seen = PairRules(languages=[]), set[bytes]()
    pairs = pairs_of(read_pages(wat, StageCounts("wat")), rules, StageCounts("pairs"), seen)
    texts = [text for _, _, text, *_ in pairs]
    before = time.process_time()
    for text in texts:
        try:
            pycld2.detect(text, isPlainText=True)
        except pycld2.error:
            continue
    _detecting[0] = time.process_time() - before
    return len(texts)


def same_work(wat: Path) -> int:
    """Do what cc2dataset does: make absolute links with a non-empty alt text and a key."""
    return sum(1 for _ in _same_work(wat))


def _same_work(wat: Path) -> Iterator[tuple[bytes, str, str, str, str]]:
    for page in read_pages(wat, StageCounts("wat")):
        if not page.links:
            continue
        images = [link for link in page.links if link.path == IMAGE_PATH and link.alt]
        bases = [Base(base_url(page.url, page.base))] * len(images)
        for link, url in zip(
            images, image_urls([link.url for link in images], bases, 65_536), strict=True
        ):
            if isinstance(url, str) and link.alt:
                yield uid_of(url, link.alt), url, link.alt, wat.name, page.url


def everything(wat: Path) -> int:
    """Apply all our rules, in any language, and write parquet: the largest output."""
    return _extract(wat, PairRules(languages=[]))


def english(wat: Path) -> int:
    """Apply all our rules with their defaults, thus English, and write parquet."""
    return _extract(wat, PairRules())


def _extract(wat: Path, rules: PairRules) -> int:
    with tempfile.TemporaryDirectory(dir=wat.parent) as folder:
        out = Path(folder) / "pairs.parquet"
        names = {"crawl": "CC-MAIN-2024-22", "segment": "00", "wat_file": wat.name}
        return extract_wat(wat, out, rules, **names)[1].kept


WAYS = {way.__name__: way for way in (inflate, read, cld2, same_work, everything, english)}

if __name__ == "__main__":
    # The processes of a segment are forked from one that has imported what they need.
    if sys.argv[1] in ("everything", "english"):
        import laion_assets.pairs.forkserver_preload  # noqa: F401
    started, before = time.perf_counter(), time.process_time()
    n = WAYS[sys.argv[1]](Path(sys.argv[2]))
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - before}
    if sys.argv[1] == "cld2":  # the texts were collected first
        spent = {"seconds": _detecting[0], "cpu_seconds": _detecting[0]}
    print(json.dumps(spent | {"n": n}))
