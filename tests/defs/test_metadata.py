from __future__ import annotations

import io
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.defs.metadata import (
    PREVIEW_CHARS,
    PREVIEW_ROWS,
    THUMBNAIL_BYTES,
    manifest_metadata,
    picture,
    table_preview,
    thumbnail,
    uri_of,
)
from laion_assets.funnel import REASONS, StageCounts
from laion_assets.lake import Manifest
from laion_assets.layout import SegmentKey


def manifest(counts: list[StageCounts], seconds: float = 4.0) -> Manifest:
    return Manifest(
        asset="embeddings",
        crawl="CC-MAIN-2000-05",
        segment="00",
        run_id="run",
        code_version="1",
        fingerprint="f",
        data_version="d",
        started="2000-01-31T06:00:00Z",
        seconds=seconds,
        bytes=1234,
        files=[{"path": "a"}, {"path": "b"}],
        counts=counts,
        metadata={"dim": 256},
    )


def test_counts_are_told_with_their_rates_and_rejects_with_their_meaning() -> None:
    counts = StageCounts("images")
    counts.keep(15)
    counts.reject("http_4xx", "http://a.test/1.jpg", n=4)
    counts.reject("timeout", n=1)
    told = manifest_metadata(manifest([counts]), Path("/lake/x"), "file:///lake/x")
    assert (told["bytes"], told["files"], told["seconds"], told["dim"]) == (1234, 2, 4.0, 256)
    assert (told["images/in"], told["images/kept"]) == (20, 15)
    assert told["images/in_per_second"] == 5.0
    assert told["images/kept_share"] == 0.75
    rows = [record.data for record in told["images/rejects"].records]
    assert [(row["reason"], row["n"]) for row in rows] == [("http_4xx", 4), ("timeout", 1)]
    assert rows[0]["what it means"] == REASONS["images"]["http_4xx"]
    assert rows[0]["examples"] == "http://a.test/1.jpg"


def test_a_stage_that_saw_nothing_has_no_share_and_no_rejects() -> None:
    told = manifest_metadata(
        manifest([StageCounts("wat")], seconds=0.0), Path("/lake/x"), "file:///lake/x"
    )
    assert told["wat/in_per_second"] == 0
    assert {"wat/kept_share", "wat/rejects"}.isdisjoint(told)


@pytest.mark.parametrize("rows_of_parts", [[3, 20], [20], [2, 0, 3]])
def test_a_preview_is_of_the_first_rows_over_all_parts(
    tmp_path: Path, rows_of_parts: list[int]
) -> None:
    texts = [f"{number} " + "x" * 200 for number in range(sum(rows_of_parts))]
    start = 0
    for number, n in enumerate(rows_of_parts):
        part = pa.table({"text": texts[start : start + n], "score": pa.array([0.12345] * n)})
        pq.write_table(part, tmp_path / f"part-{number:05d}.parquet")
        start += n
    shown = table_preview(sorted(tmp_path.iterdir()), ["text", "score"])
    assert isinstance(shown, dg.TableMetadataValue)
    rows = [record.data for record in shown.records]
    assert len(rows) == min(PREVIEW_ROWS, sum(rows_of_parts))
    for row, text in zip(rows, texts, strict=False):
        assert row == {"text": text[: PREVIEW_CHARS - 1] + "…", "score": "0.123"}


def test_an_address_is_the_lakes_own() -> None:
    key = SegmentKey("CC-MAIN-2000-05", "00")
    assert uri_of("s3://bucket/lake", "catalog") == "s3://bucket/lake/catalog"
    assert uri_of("/lake", "images", key) == f"file:///lake/images/{key.hive}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_shown_small(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).resize((900, 600)).save(whole, kind)
    small = thumbnail(whole.getvalue())
    assert 0.8 * THUMBNAIL_BYTES < len(small) <= THUMBNAIL_BYTES
    width, height = Image.open(io.BytesIO(small)).size
    assert width / height == pytest.approx(1.5, abs=0.05)
    assert width > 100
    shown = picture(whole.getvalue(), "noise", "file:///lake/noise.png").value
    assert shown.startswith("![noise](data:image/webp;base64,")
    assert shown.endswith("`file:///lake/noise.png`")
    assert len(shown) < 16_500
