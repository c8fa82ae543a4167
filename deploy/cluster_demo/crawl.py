"""The sample crawl with more segments: each of its WAT files becomes one."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from laion_assets.sample_crawl.build import build_sample_crawl


def build_in_segments(out: Path) -> dict[str, int]:
    """Write the crawls below ``out``; return each crawl's number of segments."""
    shutil.rmtree(out, ignore_errors=True)
    build_sample_crawl(out)
    counts = {}
    for listed in sorted((out / "crawl-data").glob("*/wat.paths.gz")):
        crawl = listed.parent.name
        paths = gzip.decompress(listed.read_bytes()).decode().split()
        moved = []
        for number, path in enumerate(paths):
            before, _, rest = path.partition("/segments/")
            segment, _, name = rest.partition("/")
            to = f"{before}/segments/{segment}.{number}/{name}"
            (out / to).parent.mkdir(parents=True)
            (out / path).rename(out / to)
            moved.append(to)
        listed.write_bytes(gzip.compress("\n".join(moved).encode() + b"\n", mtime=0))
        counts[crawl] = len(moved)
    return counts
