from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.knn.build import IndexOptions, build_index
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.search import Searcher, StaleIndexError, rows_at
from laion_assets.knn.subset import SubsetPart
from tests.knn.conftest import D, MakeSubset, sample

CRAWL = "CC-MAIN-2000-05"


@pytest.fixture
def subsets(make_subset: MakeSubset) -> dict[tuple[str, str], Path]:
    return {
        (CRAWL, "00"): make_subset(CRAWL, "00", [40, 25]),
        (CRAWL, "01"): make_subset(CRAWL, "01", [50]),
    }


@pytest.fixture
def searcher(subsets: dict[tuple[str, str], Path], tmp_path: Path) -> Searcher:
    parts = []
    for (crawl, segment), folder in subsets.items():
        out = tmp_path / f"index-{segment}"
        build_index(folder, out, IndexOptions(), model_key="m")
        parts.append(SegmentIndex(crawl, segment, out, "v"))

    def subset_of(crawl: str, segment: str) -> Path:
        return subsets[crawl, segment]

    merge_indices(parts, tmp_path / "merged", IndexOptions(), subset_of)
    return Searcher(tmp_path / "merged", subset_of)


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize(("segment", "part", "row"), [("00", 0, 39), ("00", 1, 17), ("01", 0, 0)])
def test_a_samples_own_vector_finds_it_with_its_own_metadata(
    subsets: dict[tuple[str, str], Path],
    searcher: Searcher,
    modality: str,
    segment: str,
    part: int,
    row: int,
) -> None:
    vectors = SubsetPart(subsets[CRAWL, segment], part).vectors(modality)
    hits = searcher.search(3 * vectors[row].astype(np.float32), 5, modality)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    best, wanted = hits[0], sample(CRAWL, segment, part, row)
    assert best.score == pytest.approx(1, abs=2e-3)
    assert best.sample_id == wanted["SAMPLE_ID"]
    assert (best.url, best.text, best.key) == (wanted["URL"], wanted["TEXT"], wanted["key"])
    assert (best.width, best.height) == (400 + row, 300 + row)
    assert best.similarity == wanted["similarity"]
    assert (best.crawl, best.segment) == (CRAWL, segment)


def test_scores_are_those_of_brute_force(
    subsets: dict[tuple[str, str], Path], searcher: Searcher
) -> None:
    query = np.random.default_rng(5).normal(size=D).astype(np.float32)
    every = np.concatenate(
        [
            SubsetPart(subsets[CRAWL, "00"], 0).vectors("image"),
            SubsetPart(subsets[CRAWL, "00"], 1).vectors("image"),
            SubsetPart(subsets[CRAWL, "01"], 0).vectors("image"),
        ]
    ).astype(np.float32)
    expected = np.sort(every @ (query / np.linalg.norm(query)))[::-1]
    hits = searcher.search(query, 1000)
    assert len(hits) == 115, "more than there are is as many as there are"
    assert np.allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_a_remade_subset_is_noticed_and_not_mixed_up(
    subsets: dict[tuple[str, str], Path], searcher: Searcher
) -> None:
    folder = subsets[CRAWL, "01"]
    path = folder / "part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array([*range(1, 50), 0])), path)
    vector = SubsetPart(folder, 0).vectors("image")[0]
    with pytest.raises(StaleIndexError, match="make the index anew"):
        searcher.search(vector, 1)
    pq.write_table(table.slice(0, 10), path)
    with pytest.raises(StaleIndexError):
        searcher.search(np.load(folder / "img_emb" / "img_emb_00000.npy")[30], 1)


def test_queries_that_mean_nothing_are_refused(searcher: Searcher) -> None:
    with pytest.raises(ValueError, match=r"\(32,\), not \(16,\)"):
        searcher.search(np.ones(16))
    for vector in (np.zeros(D), np.full(D, np.nan)):
        with pytest.raises(ValueError, match="no direction"):
            searcher.search(vector)
    with pytest.raises(ValueError, match="at least 1"):
        searcher.search(np.ones(D), 0)


def test_many_vectors_at_once_give_rows_that_lead_to_vectors_and_samples(
    subsets: dict[tuple[str, str], Path], searcher: Searcher
) -> None:
    texts = SubsetPart(subsets[CRAWL, "00"], 1).vectors("text")
    scores, rows = searcher.nearest(texts, 200, "text")
    assert scores.shape == rows.shape == (25, 115), "no more than there are"
    for number, best in enumerate(rows[:, 0]):
        assert (searcher.reconstruct(best, "text") == texts[number]).all()
    (hit,) = searcher.hits(rows[17, :1], scores[17, :1])
    (place,) = searcher.places(rows[17, :1])
    assert (place.segment, place.part, place.part_row) == ("00", 1, 17)
    assert hit.sample_id == place.sample_id == sample(CRAWL, "00", 1, 17)["SAMPLE_ID"]


def test_a_searcher_keeps_its_index_when_the_folder_is_replaced(
    subsets: dict[tuple[str, str], Path], searcher: Searcher, tmp_path: Path
) -> None:
    before = searcher.search(np.ones(D), 7)
    shutil.rmtree(tmp_path / "merged")
    assert searcher.search(np.ones(D), 7) == before


def test_an_empty_index_has_no_hits(make_subset: MakeSubset, tmp_path: Path) -> None:
    build_index(make_subset(CRAWL, "07", []), tmp_path / "i", IndexOptions(), model_key="m")
    assert Searcher(tmp_path / "i", lambda *_: tmp_path).search(np.ones(512)) == []


def test_rows_are_read_across_row_groups(subsets: dict[tuple[str, str], Path]) -> None:
    path = subsets[CRAWL, "00"] / "part-00000.parquet"
    assert pq.ParquetFile(path).num_row_groups == 3
    found = rows_at(path, [33, 0, 15, 16, 0], ["WIDTH"])
    assert found == {row: {"WIDTH": 400 + row} for row in (0, 15, 16, 33)}
    with pytest.raises(IndexError, match="has 40 rows"):
        rows_at(path, [40])
