from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets.knn.build import IndexOptions, build_index
from laion_assets.knn.files import IndexMismatchError, open_index
from laion_assets.knn.merge import merge_indices
from laion_assets.knn.recall import measure_recall, size_problem
from laion_assets.knn.subset import subset_parts
from tests.knn.conftest import MakeSubset

OLD, NEW = "CC-MAIN-2000-05", "CC-MAIN-2001-05"


def _build(
    make_subset: MakeSubset,
    tmp_path: Path,
    crawl: str,
    segment: str,
    rows: list[int],
    kind: str = "flat",
    **options: object,
) -> tuple[Path, tuple[str, str, Path]]:
    subset = make_subset(crawl, segment, rows, **options)
    out = tmp_path / f"index-{crawl}-{segment}-{kind}"
    build_index(subset, out, IndexOptions(kind=kind, dimension=99), model_key="m")
    return subset, (crawl, segment, out)


@pytest.mark.parametrize("kind", ["flat", "flat_fp16"])
def test_merged_rows_follow_the_segments_in_sorted_order(
    make_subset: MakeSubset, tmp_path: Path, kind: str
) -> None:
    first, a = _build(make_subset, tmp_path, OLD, "00", [12, 8], kind)
    _, nothing = _build(make_subset, tmp_path, OLD, "01", [], kind)
    last, b = _build(make_subset, tmp_path, NEW, "00", [15], kind)
    out = tmp_path / "merged"
    summary = merge_indices([b, nothing, a], out)
    assert (summary.n, summary.d, summary.kind) == (35, 32, kind)
    assert size_problem(out, 35) is None
    ids = pq.read_table(out / "ids.parquet").to_pylist()
    assert [row["row"] for row in ids] == list(range(35))
    assert [row["crawl"] for row in ids] == [OLD] * 20 + [NEW] * 15
    assert [row["part"] for row in ids[:20]] == [0] * 12 + [1] * 8
    for modality in ("image", "text"):
        vectors = np.concatenate(
            [part.vectors(modality) for folder in (first, last) for part in subset_parts(folder)]
        )
        _, rows = open_index(out, modality).search(vectors.astype(np.float32), 1)
        assert rows[:, 0].tolist() == list(range(35))
    assert measure_recall(out, [first, last], IndexOptions()) == {"image": 1.0, "text": 1.0}


def test_the_order_given_does_not_change_the_bytes(make_subset: MakeSubset, tmp_path: Path) -> None:
    parts = [_build(make_subset, tmp_path, OLD, segment, [9])[1] for segment in ("00", "01")]
    merge_indices(parts, tmp_path / "a")
    merge_indices(parts[::-1], tmp_path / "b")
    for name in ("ids.parquet", "image.index", "text.index", "index.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_indices_that_do_not_belong_together_are_refused(
    make_subset: MakeSubset, tmp_path: Path
) -> None:
    _, flat = _build(make_subset, tmp_path, OLD, "00", [5])
    _, half = _build(make_subset, tmp_path, OLD, "01", [5], "flat_fp16")
    _, narrow = _build(make_subset, tmp_path, NEW, "00", [5], d=16)
    with pytest.raises(IndexMismatchError, match="different kind: flat, flat_fp16"):
        merge_indices([flat, half], tmp_path / "out")
    with pytest.raises(IndexMismatchError, match="different width: 16, 32"):
        merge_indices([flat, narrow], tmp_path / "out")
    with pytest.raises(ValueError, match="no index"):
        merge_indices([], tmp_path / "out")


def test_an_index_that_is_not_its_json_is_refused(make_subset: MakeSubset, tmp_path: Path) -> None:
    _, small = _build(make_subset, tmp_path, OLD, "00", [5])
    _, large = _build(make_subset, tmp_path, OLD, "01", [6])
    (small[2] / "text.index").write_bytes((large[2] / "text.index").read_bytes())
    assert size_problem(small[2], 5) == "text.index holds 6; the subset has 5 rows"
    with pytest.raises(IndexMismatchError, match=r"holds 6 vectors, its index\.json says 5"):
        merge_indices([small, large], tmp_path / "out")
