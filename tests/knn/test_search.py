from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.clip.vectors import image_path, text_path
from laion_assets.knn.build import IndexOptions, build_index
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.search import Searcher, StaleIndexError
from laion_assets.knn.subset import SubsetError, SubsetPart
from laion_assets.layout import SegmentKey
from tests.knn.conftest import MODEL, D, MakeSubset, sample

CRAWL = "CC-MAIN-2000-05"
FIRST, SECOND = SegmentKey(CRAWL, "00"), SegmentKey(CRAWL, "01")


@pytest.fixture
def subsets(make_subset: MakeSubset) -> dict[SegmentKey, Path]:
    return {
        FIRST: make_subset(CRAWL, "00", [40, 25]),
        SECOND: make_subset(CRAWL, "01", [50]),
    }


@pytest.fixture
def searcher(subsets: dict[SegmentKey, Path], tmp_path: Path) -> Searcher:
    indices = {key: tmp_path / f"index-{key.segment}" for key in subsets}
    for key, folder in subsets.items():
        build_index(folder, indices[key], IndexOptions(), model=MODEL)
    merge_indices(
        [SegmentIndex(key, "v") for key in subsets],
        indices.__getitem__,
        tmp_path / "merged",
        IndexOptions(),
        subsets.__getitem__,
    )
    return Searcher(tmp_path / "merged", subsets.__getitem__)


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize(("segment", "part", "row"), [("00", 0, 39), ("00", 1, 17), ("01", 0, 0)])
def test_a_samples_own_vector_finds_it_with_its_own_metadata(
    subsets: dict[SegmentKey, Path],
    searcher: Searcher,
    modality: str,
    segment: str,
    part: int,
    row: int,
) -> None:
    vectors = SubsetPart(subsets[SegmentKey(CRAWL, segment)], part).vectors(modality)
    hits = searcher.search(3 * vectors[row].astype(np.float32), 5, modality)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    best, wanted = hits[0], sample(CRAWL, segment, part, row)
    assert best.score == pytest.approx(1, abs=2e-3)
    assert (best.ref.sample_id, best.ref.key) == (wanted["SAMPLE_ID"], wanted["key"])
    assert (best.url, best.text) == (wanted["URL"], wanted["TEXT"])
    assert (best.width, best.height) == (400 + row, 300 + row)
    assert best.similarity == wanted["similarity"]
    assert (best.ref.crawl, best.ref.segment) == (CRAWL, segment)


def test_scores_are_those_of_brute_force(
    subsets: dict[SegmentKey, Path], searcher: Searcher
) -> None:
    query = np.random.default_rng(5).normal(size=D).astype(np.float32)
    every = np.concatenate(
        [
            SubsetPart(subsets[FIRST], 0).vectors("image"),
            SubsetPart(subsets[FIRST], 1).vectors("image"),
            SubsetPart(subsets[SECOND], 0).vectors("image"),
        ]
    ).astype(np.float32)
    expected = np.sort(every @ (query / np.linalg.norm(query)))[::-1]
    hits = searcher.search(query, 1000)
    assert len(hits) == 115, "as many as there are, though more were wanted"
    assert np.allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_samples_that_moved_are_found_and_lost_ones_are_noticed(
    subsets: dict[SegmentKey, Path], searcher: Searcher
) -> None:
    folder = subsets[SECOND]
    path = folder / "part-00000.parquet"
    table = pq.read_table(path)
    vectors = np.load(image_path(folder, 0))
    pq.write_table(table.take(pa.array([*range(1, 50), 0])), path)
    for row in (0, 30):
        (hit,) = searcher.search(vectors[row], 1)
        assert hit.text == sample(CRAWL, "01", 0, row)["TEXT"]
    pq.write_table(table.slice(0, 10), path)
    for path in (image_path(folder, 0), text_path(folder, 0)):
        np.save(path, np.load(path)[:10])
    with pytest.raises(StaleIndexError, match=r"00-05\|01 no longer has .*: rebuild the index"):
        searcher.search(vectors[30], 1)


def test_queries_that_mean_nothing_are_refused(searcher: Searcher) -> None:
    with pytest.raises(ValueError, match=r"\(32,\), not \(16,\)"):
        searcher.search(np.ones(16))
    for vector in (np.zeros(D), np.full(D, np.nan)):
        with pytest.raises(ValueError, match="no direction"):
            searcher.search(vector)
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(np.ones(D), 0)


def test_many_vectors_at_once_give_rows_that_lead_to_vectors_and_samples(
    subsets: dict[SegmentKey, Path], searcher: Searcher
) -> None:
    texts = SubsetPart(subsets[FIRST], 1).vectors("text")
    scores, rows = searcher.nearest(texts, 200, "text")
    assert scores.shape == rows.shape == (25, 115), "no more than there are"
    for number, best in enumerate(rows[:, 0]):
        assert (searcher.reconstruct(best, "text") == texts[number]).all()
    (hit,) = searcher.hits(rows[17, :1], scores[17, :1])
    (place,) = searcher.places(rows[17, :1])
    assert (place.segment, place.part, place.part_row) == ("00", 1, 17)
    assert hit.ref.sample_id == place.sample_id == sample(CRAWL, "00", 1, 17)["SAMPLE_ID"]


def test_a_searcher_keeps_its_index_when_the_folder_is_replaced(
    subsets: dict[SegmentKey, Path], searcher: Searcher, tmp_path: Path
) -> None:
    before = searcher.search(np.ones(D), 7)
    shutil.rmtree(tmp_path / "merged")
    assert searcher.search(np.ones(D), 7) == before


def test_only_the_rows_are_read_where_no_vectors_are_asked_for(
    subsets: dict[SegmentKey, Path], searcher: Searcher
) -> None:
    vector = SubsetPart(subsets[FIRST], 0).vectors("image")[3].astype(np.float32)
    for folder in subsets.values():
        for path in (image_path(folder, 0), text_path(folder, 0)):
            shutil.rmtree(path.parent)
    assert searcher.search(vector, 1)[0].ref.segment == FIRST.segment


def test_only_the_row_group_of_a_hit_is_read(
    subsets: dict[SegmentKey, Path], searcher: Searcher
) -> None:
    path = subsets[FIRST] / "part-00000.parquet"
    about = pq.read_metadata(path)
    assert about.num_row_groups == 3
    with path.open("r+b") as file:
        for group in (0, 1):
            for number in range(about.num_columns):
                column = about.row_group(group).column(number)
                file.seek(column.dictionary_page_offset or column.data_page_offset)
                file.write(bytes(column.total_compressed_size))
    (hit,) = searcher.hits([35], [1.0])
    assert hit.text == sample(CRAWL, "00", 0, 35)["TEXT"]
    with pytest.raises(SubsetError, match=r"part-00000.*deserialize"):
        searcher.hits([3], [1.0])


def test_an_empty_index_has_no_hits(make_subset: MakeSubset, tmp_path: Path) -> None:
    build_index(make_subset(CRAWL, "07", []), tmp_path / "i", IndexOptions(), model=MODEL)
    assert Searcher(tmp_path / "i", tmp_path).search(np.ones(512)) == []
