from __future__ import annotations

import io
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from laion_assets.crawl.source import CrawlSource, CrawlSourceOptions
from laion_assets.pairs.extract import extract_files
from laion_assets.pairs.rules import PairRules
from laion_assets.sample_crawl.drawings import BACKGROUNDS, COLOURS, THINGS, every_drawing, render
from laion_assets.sample_crawl.drawn_crawl import CRAWL, SEGMENT_IDS, build_drawn_crawl
from laion_assets.sample_crawl.server import SampleServer


def test_the_pipeline_treats_it_as_a_crawl(tmp_path: Path) -> None:
    root, out = tmp_path / "crawl", tmp_path / "pairs.parquet"
    build_drawn_crawl(root, 90)
    wats = sorted(root.glob("crawl-data/**/*.wat.gz"))
    assert len(wats) == 4
    counts = {one.stage: one for one in extract_files(wats, out, PairRules())}
    assert (counts["pairs"].kept, counts["pairs"].n_in) == (90, 90)
    rows = pq.read_table(out).to_pylist()
    assert len({row["url"] for row in rows}) == 90
    with SampleServer(root) as server:
        options = CrawlSourceOptions(
            collinfo_url=f"{server.url}collinfo.json", data_url=server.url, segments_per_crawl=2
        )
        source = CrawlSource(options)
        assert [info.name for info in source.crawls()] == [CRAWL]
        assert len(source.segments(CRAWL)) == len(SEGMENT_IDS)
        host, _, path = rows[0]["url"].removeprefix("http://").partition("/")
        asked = urllib.request.Request(f"{server.url}{path}", headers={"Host": host})
        with urllib.request.urlopen(asked) as answer:
            assert Image.open(io.BytesIO(answer.read())).size == (288, 288)


def test_the_same_number_of_drawings_gives_the_same_bytes_and_is_not_drawn_twice(
    tmp_path: Path,
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    build_drawn_crawl(one, 12)
    build_drawn_crawl(other, 12)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 9
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in files)
    before = (one / "images.zip").stat().st_mtime_ns
    build_drawn_crawl(one, 12)
    assert (one / "images.zip").stat().st_mtime_ns == before
    build_drawn_crawl(one, 13)
    assert (one / "images.zip").stat().st_mtime_ns != before


def test_a_drawing_shows_its_colours_and_passes_the_size_rule() -> None:
    kinds = every_drawing()
    assert {drawing.thing for drawing in kinds} == set(THINGS)
    whole = [drawing for drawing in kinds if drawing.thing in ("circle", "square", "diamond")]
    for number, drawing in enumerate(whole[::7]):
        data = render(drawing, number)
        assert len(data) >= 5_000
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        for place, colour in (
            ((4, 4), BACKGROUNDS[drawing.background]),
            ((144, 144), COLOURS[drawing.colour]),
        ):
            seen = picture.getpixel(place)
            assert isinstance(seen, tuple)
            off = max(abs(a - b) for a, b in zip(seen, colour, strict=True))
            assert off < 60, (drawing, place, seen)
