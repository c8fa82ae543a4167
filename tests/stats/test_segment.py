from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.filtering.similarities import PER_UNIT, Similarities
from laion_assets.funnel import STAGES
from laion_assets.schemas import STATISTICS
from laion_assets.stats.grids import ASPECT, PIXELS, SIMILARITY
from laion_assets.stats.segment import SHUFFLED, FunnelMismatch, segment_stats
from tests.stats.conftest import SegmentFiles, counts


def _rows(folder: Path, kind: str, stage: str, metric: str) -> list[dict[str, Any]]:
    table = pq.read_table(folder / "statistics.parquet")
    assert table.schema.equals(STATISTICS)
    rows = table.to_pylist()
    return [r for r in rows if (r["kind"], r["stage"], r["metric"]) == (kind, stage, metric)]


def _histogram(folder: Path, stage: str, metric: str) -> dict[float, int]:
    return {row["bin_low"]: row["n"] for row in _rows(folder, "histogram", stage, metric)}


def _top(folder: Path, stage: str, metric: str) -> dict[str, int]:
    return {row["value"]: row["n"] for row in _rows(folder, "top", stage, metric)}


def test_the_summary_has_the_counts_of_the_manifests(segment: SegmentFiles, tmp_path: Path) -> None:
    summary = segment_stats(segment.partitions(), tmp_path)
    assert list(summary["stages"]) == [*STAGES]
    assert summary["stages"]["subset"] == {"in": 40, "kept": 24}
    assert summary["rejected"] == 5 + 107 + 5 + 15 + 16


def test_histograms_count_every_row_once_with_edges_in_their_own_bin(
    segment: SegmentFiles, tmp_path: Path
) -> None:
    segment_stats(segment.partitions(), tmp_path)
    similarity = _histogram(tmp_path, "scored", "similarity")
    assert sum(similarity.values()) == 40
    assert similarity[0.3] == 2, "0.300 and 0.305"
    assert similarity[0.29] == 1, "0.29 * 100 is less than 29, and still in its own bin"
    assert sum(_histogram(tmp_path, "subset", "similarity").values()) == 24
    lengths = _histogram(tmp_path, "pairs", "text_length")
    assert lengths[15.0] == 5
    assert sum(lengths.values()) == 60
    sides = _histogram(tmp_path, "images", "width")
    assert sum(sides.values()) == 40, "failed downloads have no size"
    assert {128.0, 256.0, 512.0, 1024.0} <= set(sides)


def test_a_heads_scores_are_counted_by_the_heads_column(
    segment: SegmentFiles, tmp_path: Path
) -> None:
    for asset, n in (("scored_pairs", 40), ("filtered_subset", 24)):
        path = segment.folder(asset) / "part-00000.parquet"
        scores = pa.array([None, float("nan"), *(row / 40 for row in range(2, n))], pa.float32())
        table = pq.ParquetFile(path).read().append_column("score_watermark", scores)
        pq.write_table(table, path)
    segment_stats(segment.partitions(), tmp_path)
    assert _histogram(tmp_path, "scored", "score_watermark")[0.25] == 2
    assert sum(_histogram(tmp_path, "scored", "score_watermark").values()) == 38
    assert sum(_histogram(tmp_path, "subset", "score_watermark").values()) == 22


def test_shuffled_pairs_are_summed_up_on_the_grid_of_the_real_ones(
    segment: SegmentFiles, tmp_path: Path
) -> None:
    segment_stats(segment.partitions(), tmp_path)
    assert not _rows(tmp_path, "histogram", "scored", SHUFFLED), "of scores without counts"
    found = Similarities()
    for cosine, n in ((-0.291, 1), (-0.29, 2), (0.29, 3), (0.299, 4), (0.3, 5)):
        found.shuffled[PER_UNIT + round(cosine * PER_UNIT)] = n
    found.write(segment.folder("scored_pairs"), 0)
    segment_stats(segment.partitions(), tmp_path)
    shuffled = _histogram(tmp_path, "scored", SHUFFLED)
    assert shuffled == {-0.3: 1, -0.29: 2, 0.29: 7, 0.3: 5}
    assert sum(_histogram(tmp_path, "scored", "similarity").values()) == 40


def test_top_values_are_counted_from_the_rows(segment: SegmentFiles, tmp_path: Path) -> None:
    segment_stats(segment.partitions(), tmp_path)
    assert _top(tmp_path, "pairs", "host")["a.test"] == 20
    assert _top(tmp_path, "pairs", "language")["de"] == 6
    assert _top(tmp_path, "scored", "nsfw")["UNLIKELY"] == 24
    assert _top(tmp_path, "subset", "license")["?"] == 18


def test_deciles_have_metrics_fine_enough_to_be_exact(
    segment: SegmentFiles, tmp_path: Path
) -> None:
    segment_stats(segment.partitions(), tmp_path)
    similarity = _histogram(tmp_path, "subset", "similarity_fine")
    assert similarity == {round(0.3 + 0.005 * row, 4): 1 for row in range(24)}
    assert _histogram(tmp_path, "subset", "text_length_fine") == {13.0 + n: 1 for n in range(24)}


def test_what_was_measured_and_the_nearest_pairs_are_noted(
    segment: SegmentFiles, tmp_path: Path
) -> None:
    segment_stats(segment.partitions(), tmp_path)
    (rows,) = _rows(tmp_path, "rows", "subset", "data_version")
    assert (rows["value"], rows["n"]) == ("d", 24)
    above = [row["bin_low"] for row in _rows(tmp_path, "nearest", "scored", "above")]
    below = [row["bin_low"] for row in _rows(tmp_path, "nearest", "scored", "below")]
    harmless = [row for row in range(24) if row % 5 not in (2, 4)]
    assert above == pytest.approx([0.3 + 0.005 * row for row in harmless[:12]])
    assert len(below) == 9
    assert below == sorted(below, reverse=True)
    assert max(below) < 0.3


def test_all_languages_are_counted_and_the_top_hosts(segment: SegmentFiles, tmp_path: Path) -> None:
    segment.pairs = [
        pair | {"language": f"{n:03d}", "url": f"http://{n}.test/"}
        for n, pair in enumerate(segment.pairs * 3)
    ]
    segment.write()
    segment.manifest("pair_parquet", [counts("pairs", 180, {})])
    only = {"pair_parquet": segment.folder("pair_parquet")}
    segment_stats(only, tmp_path)
    assert len(_top(tmp_path, "pairs", "language")) == 180
    assert len(_top(tmp_path, "pairs", "host")) == 100


def test_the_same_partitions_give_the_same_bytes(segment: SegmentFiles, tmp_path: Path) -> None:
    for out in ("a", "b"):
        segment_stats(segment.partitions(), tmp_path / out)
    first, second = ((tmp_path / out / "statistics.parquet").read_bytes() for out in "ab")
    assert first == second


def _lose_a_row(segment: SegmentFiles) -> None:
    path = segment.folder("unique_pairs") / "part-00000.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def _lose_a_score(segment: SegmentFiles) -> None:
    path = segment.folder("scored_pairs") / "part-00000.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def _lie_about_a_reason(segment: SegmentFiles) -> None:
    rejects = {"http_5xx": 10, "too_small": 5}
    segment.manifest("image_shards", [counts("images", 40, rejects)])


def _break_the_chain(segment: SegmentFiles) -> None:
    segment.manifest("filtered_subset", [counts("subset", 24, {"below_threshold": 15})])


def _lose_a_subject(segment: SegmentFiles) -> None:
    lost = counts("unique_pairs", 55, {"duplicate": 4})
    lost.n_in = 60
    segment.manifest("unique_pairs", [lost])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_lose_a_row, r"unique_pairs counts 55 kept, but .* holds 54 rows"),
        (_lose_a_score, r"embeddings counts 40 kept, but .*scored_pairs.* holds 39 rows"),
        (_lie_about_a_reason, r"images counts the rejects \{'http_5xx': 10, .*rows say"),
        (_break_the_chain, r"subset: 39 in, but embeddings kept 40"),
        (_lose_a_subject, r"unique_pairs: 60 in, but 55 kept and 4 rejected"),
    ],
)
def test_counts_that_do_not_agree_are_an_error_and_publish_nothing(
    segment: SegmentFiles,
    tmp_path: Path,
    damage: Callable[[SegmentFiles], None],
    message: str,
) -> None:
    damage(segment)
    out = tmp_path / "out"
    with pytest.raises(FunnelMismatch, match=message):
        segment_stats(segment.partitions(), out)
    assert not out.exists()


def test_missing_stages_are_left_out(segment: SegmentFiles, tmp_path: Path) -> None:
    only = {"pair_parquet": segment.folder("pair_parquet")}
    assert set(segment_stats(only, tmp_path)["stages"]) == {"wat", "pairs"}
    table = pq.read_table(tmp_path / "statistics.parquet")
    assert set(table["stage"].to_pylist()) == {"pairs"}


def test_a_segment_without_any_pair_has_statistics_too(
    segment: SegmentFiles, tmp_path: Path
) -> None:
    folder = segment.folder("pair_parquet")
    for part in folder.glob("part-*.parquet"):
        part.unlink()
    segment.manifest("pair_parquet", [counts("wat", 0, {}), counts("pairs", 0, {})])
    segment_stats({"pair_parquet": folder}, tmp_path)
    assert pq.read_table(tmp_path / "statistics.parquet").num_rows == 0


def test_grids_have_round_edges() -> None:
    assert [PIXELS.edge(number) for number in (16, 18, 20)] == [256.0, 512.0, 1024.0]
    assert PIXELS.edge(17) == pytest.approx(362.04, abs=0.01)
    assert (ASPECT.edge(0), ASPECT.edge(-4)) == (1.0, 0.5)
    assert SIMILARITY.edge(29) == 0.29
