from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from laion_assets.crawl.source import (
    CrawlNotReadyError,
    CrawlSource,
    CrawlSourceError,
    CrawlSourceOptions,
)
from tests.conftest import FolderServer

CRAWL = "CC-MAIN-2000-05"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    listed = [
        {"id": "CC-MAIN-2000-10", "name": "March 2000"},
        {"id": CRAWL, "name": "February 2000"},
        {"id": "CC-MAIN-2008-2009", "name": "an early one, with another layout"},
    ]
    (tmp_path / "collinfo.json").write_text(json.dumps(listed))
    paths = [
        f"crawl-data/{CRAWL}/segments/{segment}/wat/{number:05d}.warc.wat.gz"
        for segment in ("200.2", "100.1")
        for number in (1, 0)
    ]
    folder = tmp_path / "crawl-data" / CRAWL
    folder.mkdir(parents=True)
    (folder / "wat.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode()))
    (tmp_path / paths[0]).parent.mkdir(parents=True)
    (tmp_path / paths[0]).write_bytes(b"wat" * 1000)
    return tmp_path


@pytest.fixture
def server(root: Path, serve_folder: Callable[[Path], FolderServer]) -> FolderServer:
    return serve_folder(root)


@pytest.fixture
def url(server: FolderServer) -> str:
    return server.url


def source_at(url: str, **options: object) -> CrawlSource:
    values: dict[str, object] = {
        "collinfo_url": f"{url}/collinfo.json",
        "data_url": url,
        "attempts": 3,
        "back_off_s": 0.01,
    }
    values |= options
    return CrawlSource(CrawlSourceOptions.model_validate(values))


def test_crawls_are_newest_first_and_early_layouts_left_out(url: str) -> None:
    assert [info.name for info in source_at(url).crawls()] == ["CC-MAIN-2000-10", CRAWL]


def test_segments_are_numbered_in_the_order_of_their_ids(url: str, root: Path) -> None:
    for source in (source_at(url), source_at(str(root))):
        segments = source.segments(CRAWL)
        assert [(s.number, s.segment_id) for s in segments] == [("00", "100.1"), ("01", "200.2")]
        assert [path[-17:] for path in segments[0].wat_files] == [
            "00000.warc.wat.gz",
            "00001.warc.wat.gz",
        ]
        assert source.segment(CRAWL, "01") == segments[1]
        with pytest.raises(CrawlSourceError, match="no segment 02"):
            source.segment(CRAWL, "02")


def test_a_crawl_without_paths_is_not_ready(url: str) -> None:
    with pytest.raises(CrawlNotReadyError, match="CC-MAIN-2000-10"):
        source_at(url).segments("CC-MAIN-2000-10")


def test_taking_a_part_of_a_segment(url: str) -> None:
    segment = source_at(url).segments(CRAWL)[0]
    assert source_at(url).taken(segment) == list(segment.wat_files)
    assert source_at(url, wat_files_per_segment=1).taken(segment) == [segment.wat_files[0]]
    half = source_at(url, wat_fraction=0.5)
    assert len(half.taken(segment)) == 1
    assert half.taken(segment) == half.taken(segment)


def test_a_wat_file_is_fetched_whole_after_transient_errors(
    server: FolderServer, url: str, tmp_path: Path
) -> None:
    source = pickle.loads(pickle.dumps(source_at(url)))
    wat = source.segments(CRAWL)[1].wat_files[1]
    server.failing[f"/{wat}"] = 2
    source.fetch(wat, tmp_path / "out" / "x.gz")
    assert (tmp_path / "out" / "x.gz").read_bytes() == b"wat" * 1000
    assert server.failing[f"/{wat}"] == 0


def test_a_repeated_error_names_the_url_and_leaves_no_file(
    server: FolderServer, url: str, tmp_path: Path
) -> None:
    server.failing["/collinfo.json"] = 99
    with pytest.raises(CrawlSourceError, match=r"collinfo\.json could not be read in 3 attempts"):
        source_at(url).crawls()
    with pytest.raises(FileNotFoundError):
        source_at(url).fetch("crawl-data/absent.gz", tmp_path / "x.gz")
    assert not (tmp_path / "x.gz").exists()


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '[{"id": 3}]'])
def test_an_invalid_list_is_an_error_and_not_an_empty_list(
    url: str, root: Path, content: str
) -> None:
    (root / "collinfo.json").write_text(content)
    with pytest.raises(CrawlSourceError, match="is not a list of crawls"):
        source_at(url).crawls()


def test_damaged_paths_are_an_error(url: str, root: Path) -> None:
    paths = root / "crawl-data" / CRAWL / "wat.paths.gz"
    paths.write_bytes(paths.read_bytes()[:-9])
    with pytest.raises(CrawlSourceError, match="is not a list of WAT paths"):
        source_at(url).segments(CRAWL)
