"""Vectors of a few rows of many files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from laion_assets.clip.vectors import image_path, text_path
from laion_assets.knn.build import build_index
from laion_assets.knn.codec import Codec, train_codec
from laion_assets.knn.files import SearchParameters
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.search import Searcher
from laion_assets.knn.subset import SubsetError
from laion_assets.knn.vectors import VectorFiles
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from tests.knn.conftest import MODEL, D, MakeSubset

CRAWL = "CC-MAIN-2000-05"
OPTIONS = IndexOptions(kind="ivf_sq8", cells=4, vectors=1_000, recall_queries=20, merge_every=99)


def test_rows_are_those_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    path, files = tmp_path / "v.npy", VectorFiles()
    vectors = np.arange(60, dtype=np.float16).reshape(20, 3)
    np.save(path, vectors)
    for rows in ([], [0], [19], [3, 4, 5, 9, 10, 19], [7, 2, 2, 3]):
        header, found = files.read(str(path), np.array(rows, np.int64))
        assert (header.rows, header.d) == (20, 3)
        assert (found == vectors[rows]).all()
    with pytest.raises(SubsetError, match="has 20 rows, not row 20"):
        files.read(str(path), np.array([19, 20]))
    np.save(tmp_path / "other.npy", -vectors[:4].astype(np.float32))
    (tmp_path / "other.npy").rename(path)
    after, found = files.read(str(path), np.array([1, 3]))
    assert after.seen != header.seen
    assert (found == -vectors[[1, 3]]).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.arange(4), r"int64 in the shape \(4,\)"),
        (np.asfortranarray(np.ones((3, 2), np.float16)), "is no file of vectors"),
        (b"not numpy's", "is no file of vectors"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused(
    tmp_path: Path, content: np.ndarray | bytes, message: str
) -> None:
    path = tmp_path / "v.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(SubsetError, match=message):
        VectorFiles().header(str(path))


class Published:
    """Segments of a lake, coded and merged."""

    def __init__(self, root: Path, make_subset: MakeSubset, segments: int) -> None:
        self.lake = LocalLake.at(root / "lake")
        self.keys = [SegmentKey(CRAWL, f"{number:02d}") for number in range(segments)]
        self.rows = 20
        for key in self.keys:
            made = make_subset(key.crawl, key.segment, [self.rows])
            with self.lake.publish("filtered_subset", key, inputs={}, code_version="1") as staging:
                for path in sorted(made.rglob("*.*")):
                    target = staging.path / path.relative_to(made)
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(path.read_bytes())
        (root / "codec").mkdir()
        folders = [self.subset(key) for key in self.keys]
        train_codec(folders, root / "codec", OPTIONS, model=MODEL)
        codec = Codec.open(root / "codec")
        for key, folder in zip(self.keys, folders, strict=True):
            build_index(folder, root / key.segment, OPTIONS, model=MODEL, codec=codec)
        self.index = root / "merged"
        merge_indices(
            [SegmentIndex(key, "1") for key in self.keys],
            lambda key: root / key.segment,
            self.index,
            OPTIONS,
            self.subset,
        )

    def subset(self, key: SegmentKey) -> Path:
        return self.lake.folder("filtered_subset", key)


def open_files(root: Path) -> list[str]:
    """The open files below a folder; the process has others, which may close at any time."""
    links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
    return sorted(link for link in links if Path(link).is_relative_to(root))


def test_no_file_stays_open_however_many_parts_a_query_touches(
    make_subset: MakeSubset, tmp_path: Path
) -> None:
    made = Published(tmp_path, make_subset, 40)
    searcher = Searcher(made.index, made.subset)
    before = open_files(tmp_path)
    every = SearchParameters(nprobe=4, rerank=40 * made.rows)
    scores, rows = searcher.nearest(np.ones((1, D)), 800, parameters=every)
    assert {hit.ref.segment for hit in searcher.hits(rows[0], scores[0])} == {
        key.segment for key in made.keys
    }
    assert open_files(tmp_path) == before


def test_a_published_subset_is_known_by_its_manifest(
    make_subset: MakeSubset, tmp_path: Path
) -> None:
    """Its SAMPLE_IDs are read only where the vectors' digests are not those that were indexed."""
    made = Published(tmp_path, make_subset, 20)
    query = np.load(image_path(made.subset(made.keys[3]), 0))[7:8].astype(np.float32)
    expected = OpenIndex(made.index, made.subset).nearest(query, 5, "image")
    for key in made.keys:
        (made.subset(key) / "part-00000.parquet").write_bytes(b"unreadable")
    index = OpenIndex(made.index, made.subset)
    found = index.nearest(query, 5, "image")
    assert (found[0] == expected[0]).all()
    assert (found[1] == expected[1]).all()
    assert not index.stale


def test_samples_that_moved_to_another_part_are_found_with_their_vectors(
    make_subset: MakeSubset, tmp_path: Path
) -> None:
    subset = make_subset(CRAWL, "00", [30, 25])
    build_index(subset, tmp_path / "flat", IndexOptions(), model=MODEL)
    images = np.concatenate([np.load(image_path(subset, part)) for part in (0, 1)])
    index, searcher = OpenIndex(tmp_path / "flat", subset), Searcher(tmp_path / "flat", subset)
    hits = searcher.hits([31, 54], [1.0, 1.0])
    # The same samples in one part instead of two, but for the first one.
    joined = make_subset(CRAWL, "00", [55], seed=1)
    _join(subset, joined)
    moved = OpenIndex(tmp_path / "flat", joined)
    rows = np.arange(1, 55)
    assert (moved.vectors(rows, "image") == images[1:]).all()
    assert (index.vectors(rows, "image") == images[1:]).all()
    assert moved.stale == {(CRAWL, "00")}
    after = Searcher(tmp_path / "flat", joined).hits([31, 54], [1.0, 1.0])
    assert after == hits


def _join(parts: Path, into: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(parts / f"part-{number:05d}.parquet") for number in (0, 1)]
    pq.write_table(pa.concat_tables(tables).slice(1), into / "part-00000.parquet")
    for path_of in (image_path, text_path):
        every = np.concatenate([np.load(path_of(parts, number)) for number in (0, 1)])
        np.save(path_of(into, 0), every[1:])
