from __future__ import annotations

import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.clip.vectors import image_path, text_path
from laion_assets.knn.build import IndexOptions, build_index, index_subset
from laion_assets.knn.codec import Codec, train_codec
from laion_assets.knn.files import IndexMismatchError, IndexSummary, map_index
from laion_assets.knn.recall import measure_recall, size_problem
from laion_assets.knn.search import Searcher
from laion_assets.knn.subset import SubsetError, subset_parts
from laion_assets.schemas import INDEX_IDS
from tests.knn.conftest import MODEL, D, MakeSubset

CRAWL = "CC-MAIN-2000-05"


@pytest.mark.parametrize("kind", ["flat", "flat_fp16"])
def test_every_row_is_its_own_nearest_neighbour(
    make_subset: MakeSubset, tmp_path: Path, kind: str
) -> None:
    subset = make_subset(CRAWL, "00", [40, 0, 25])
    out = tmp_path / "index"
    summary = build_index(subset, out, IndexOptions(kind=kind), model=MODEL)
    assert (summary.n, summary.d, summary.kind, summary.model) == (65, D, kind, "m")
    assert IndexSummary.read(out) == summary
    for modality in ("image", "text"):
        index = map_index(out / f"{modality}.index")
        stacked = np.concatenate([part.vectors(modality) for part in subset_parts(subset)])
        scores, rows = index.search(stacked.astype(np.float32), 1)
        assert rows[:, 0].tolist() == list(range(65))
        # The vectors are float16 already: neither kind loses anything.
        assert np.allclose(index.reconstruct(64), stacked[64].astype(np.float32), atol=0)
        assert np.allclose(scores[:, 0], 1, atol=2e-3)


def test_ids_lead_back_to_the_subsets_rows(make_subset: MakeSubset, tmp_path: Path) -> None:
    subset = make_subset(CRAWL, "03", [20, 0, 17])
    build_index(subset, tmp_path / "index", IndexOptions(), model=MODEL)
    ids = pq.read_table(tmp_path / "index" / "ids.parquet")
    assert ids.schema.equals(INDEX_IDS)
    rows = ids.to_pylist()
    assert [row["row"] for row in rows] == list(range(37))
    assert [(row["part"], row["part_row"]) for row in rows] == [
        *((0, row) for row in range(20)),
        *((2, row) for row in range(17)),
    ]
    assert {(row["crawl"], row["segment"]) for row in rows} == {(CRAWL, "03")}
    third = pq.read_table(subset / "part-00002.parquet")["SAMPLE_ID"].to_pylist()
    assert [row["SAMPLE_ID"] for row in rows[20:]] == third


@pytest.mark.parametrize("places", ["none", "null"])
def test_files_of_no_crawl_are_indexed_and_found(
    make_subset: MakeSubset, tmp_path: Path, places: str
) -> None:
    """Neither crawl nor segment, and columns as `embed` names them."""
    subset = make_subset(CRAWL, "00", [7])
    (part,) = subset_parts(subset)
    rows = pq.read_table(part.parquet, columns=["SAMPLE_ID", "URL", "TEXT"])
    table = rows.rename_columns(["SAMPLE_ID", "url", "text"])
    if places == "null":
        for name in ("crawl", "segment"):
            table = table.append_column(name, pa.nulls(7, pa.string()))
    pq.write_table(table, part.parquet)
    summary = index_subset(subset, tmp_path / "index", IndexOptions(), model=MODEL)
    assert [(of.crawl, of.segment, of.rows) for of in summary.runs[0].segments] == [("", "", 7)]
    hits = Searcher(tmp_path / "index", subset).search(part.vectors("image")[3], 1)
    assert [(hit.url, hit.text, hit.similarity) for hit in hits] == [
        (rows["URL"][3].as_py(), rows["TEXT"][3].as_py(), None)
    ]


def test_files_without_sample_ids_are_refused_before_anything_is_written(
    make_subset: MakeSubset, tmp_path: Path
) -> None:
    subset = make_subset(CRAWL, "00", [7])
    (part,) = subset_parts(subset)
    pq.write_table(pa.table({"url": ["u"] * 7}), part.parquet)
    with pytest.raises(SubsetError, match="no column SAMPLE_ID"):
        index_subset(subset, tmp_path / "index", IndexOptions(), model=MODEL)
    assert not (tmp_path / "index").exists()


def test_the_same_subset_gives_the_same_bytes(make_subset: MakeSubset, tmp_path: Path) -> None:
    subset = make_subset(CRAWL, "00", [30])
    for out in ("a", "b"):
        build_index(subset, tmp_path / out, IndexOptions(), model=MODEL)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["ids.npy", "ids.parquet", "image.index", "index.json", "text.index"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(("rows", "d"), [([], 77), ([0], D), ([0, 0], D)])
def test_an_empty_subset_gives_a_valid_empty_index(
    make_subset: MakeSubset, tmp_path: Path, rows: list[int], d: int
) -> None:
    subset = make_subset(CRAWL, "00", rows)
    out = tmp_path / "index"
    summary = build_index(subset, out, IndexOptions(dimension=77), model=MODEL)
    assert (summary.n, summary.d) == (0, d)
    assert faiss.read_index(str(out / "image.index")).d == d
    assert size_problem(out, 0) is None
    perfect = {"1": 1.0, "10": 1.0, "100": 1.0}
    found = measure_recall(out, subset, IndexOptions())
    assert found == {"image": perfect, "text": perfect}


def test_an_empty_subset_fits_a_codec_of_images_alone(
    make_subset: MakeSubset, tmp_path: Path
) -> None:
    bare = make_subset(CRAWL, "00", [400])
    shutil.rmtree(bare / "_text_emb")
    (tmp_path / "codec").mkdir()
    options = IndexOptions(kind="ivf_sq8", cells=4, recall_queries=4)
    train_codec([bare], tmp_path / "codec", options, model=MODEL)
    codec = Codec.open(tmp_path / "codec")
    out = tmp_path / "index"
    # Without samples nobody knows of captions, so it has texts' vectors, none of them.
    summary = build_index(make_subset(CRAWL, "01", [0]), out, options, model=MODEL, codec=codec)
    assert [(run.codec, run.modalities) for run in summary.runs] == [(codec.id, ("image",))]
    assert size_problem(out, 0) is None


def test_rows_and_vectors_that_differ_in_number_are_refused(
    make_subset: MakeSubset, tmp_path: Path
) -> None:
    subset = make_subset(CRAWL, "00", [10])
    path = text_path(subset, 0)
    np.save(path, np.load(path)[:9])
    with pytest.raises(SubsetError, match=r"\(9, 32\).*10 rows"):
        build_index(subset, tmp_path / "index", IndexOptions(), model=MODEL)
    path.unlink()
    with pytest.raises(SubsetError, match="no text vectors"):
        build_index(subset, tmp_path / "index", IndexOptions(), model=MODEL)
    assert not (tmp_path / "index" / "index.json").exists()


def test_vectors_of_different_widths_are_refused(make_subset: MakeSubset, tmp_path: Path) -> None:
    subset = make_subset(CRAWL, "00", [10, 10])
    path = image_path(subset, 1)
    np.save(path, np.load(path)[:, :16])
    with pytest.raises(IndexMismatchError, match=r"16 \(part 1, image\), 32 \(part 0, image\)"):
        build_index(subset, tmp_path / "index", IndexOptions(), model=MODEL)
