from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_assets.lake import DamagedFilesError, LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.release.plan import Partitions, ReleaseError, plan
from tests.stats.conftest import SEGMENTS, SegmentFiles


def _without_rows(part: Path) -> None:
    """Overwrite all data pages; the footer stays."""
    content = part.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    part.write_bytes(content[:4] + b"x" * (len(content) - footer - 4) + content[-footer:])


def test_rows_are_not_read_unless_there_is_a_list(lake: LocalLake) -> None:
    parts = sorted(lake.root.glob("filtered_subset/*/*/part-*.parquet"))
    sample = pq.ParquetFile(parts[0]).read(["SAMPLE_ID"])["SAMPLE_ID"][5]
    for part in parts:
        _without_rows(part)
    planned = plan(lake, 5, {})
    assert (planned.samples, [piece.n for piece in planned.pieces]) == (72, [24] * 3)
    assert (planned.dimension, planned.model.model) == (16, "tiny/tiny")
    (lake.root / "removals").mkdir()
    (lake.root / "removals" / "a.txt").write_text(f"sample-id:{sample}\n")
    with pytest.raises(OSError, match="deserialize"):
        plan(lake, 5, {})


def test_a_manifest_that_counts_its_rows_is_believed(lake: LocalLake) -> None:
    path = SegmentFiles(lake.root, *SEGMENTS[1]).folder("filtered_subset") / "_manifest.json"
    about = {"bytes": 1, "sha256": ""}
    files = [{"name": "part-00000.parquet", "rows": 23, **about}, {"name": "img_emb.npy", **about}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    assert [piece.n for piece in plan(lake, 5, {}).pieces] == [24, 23, 24]


def test_a_partition_of_which_nothing_is_left_has_no_place_in_a_release(lake: LocalLake) -> None:
    first = SegmentFiles(lake.root, *SEGMENTS[0])
    (lake.root / "blocklists").mkdir()
    urls = [f"url:{pair['url']}" for pair in first.subset]
    (lake.root / "blocklists" / "a.txt").write_text("\n".join(urls))
    planned = plan(lake, 5, {})
    assert (planned.samples, planned.left_out) == (48, {"removed": 0, "blocked": 24})
    slices = [(piece.part.folder, len(rows)) for piece, rows in planned.slices(0, 48)]
    second, third = (
        SegmentFiles(lake.root, *key).folder("filtered_subset") for key in SEGMENTS[1:]
    )
    assert slices == [(second, 24), (third, 24)]


def test_only_other_content_counts_as_a_change(lake: LocalLake) -> None:
    found = Partitions.read(lake)
    assert found.unchanged(lake)
    path = SegmentFiles(lake.root, *SEGMENTS[1]).folder("filtered_subset") / "_manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"run_id": "another"}))
    assert found.unchanged(lake), "it was replaced by the same"
    path.write_text(json.dumps(manifest | {"data_version": "another"}))
    assert not found.unchanged(lake)
    path.unlink()
    assert not found.unchanged(lake)
    with pytest.raises(ReleaseError, match="no samples"):
        for key in SEGMENTS:
            (SegmentFiles(lake.root, *key).folder("filtered_subset") / "_manifest.json").unlink(
                missing_ok=True
            )
        plan(lake, 5, {})


def test_damage_stops_what_would_be_released_of_it_and_is_looked_for_once(lake: LocalLake) -> None:
    planned = plan(lake, 3, {})
    ((first, stop), *_, last) = planned.bounds()
    second = SegmentFiles(lake.root, *SEGMENTS[1]).folder("filtered_subset")
    _without_rows(second / "part-00000.parquet")
    verified = {SegmentKey(*SEGMENTS[2])}
    planned.verify(lake, first, stop, verified)
    assert verified == {SegmentKey(*SEGMENTS[0]), SegmentKey(*SEGMENTS[2])}
    third = SegmentFiles(lake.root, *SEGMENTS[2]).folder("filtered_subset")
    _without_rows(third / "part-00000.parquet")
    planned.verify(lake, *last, verified)
    with pytest.raises(
        DamagedFilesError, match=f"{SEGMENTS[1][0]}.*part-00000.parquet has another"
    ):
        planned.verify(lake, first, last[1], verified)


def test_captions_are_those_of_the_manifest_though_their_files_are_gone(lake: LocalLake) -> None:
    path = SegmentFiles(lake.root, *SEGMENTS[1]).folder("filtered_subset") / "_manifest.json"
    value = json.loads(path.read_text())
    names = ("_img_emb/img_emb_00000.npy", "_text_emb/text_emb_00000.npy")
    value["files"] += [{"name": name, "bytes": 1, "sha256": ""} for name in names]
    path.write_text(json.dumps(value))
    shutil.rmtree(path.parent / "_text_emb")
    planned = plan(lake, 3, {})
    assert (planned.samples, planned.left_out) == (72, {"removed": 0, "blocked": 0})
    value["files"].pop()
    path.write_text(json.dumps(value))
    assert plan(lake, 3, {}).left_out["no_caption"] == 24
