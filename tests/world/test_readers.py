"""Every table folder of the lake, read by others' libraries without options: each row once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pandas as pd
import pytest
from embedding_reader import EmbeddingReader

from laion_assets.cli import main
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.layout import SEGMENT_STATS, partition_of
from laion_assets.tables import KEY_COLUMNS, rows_in
from tests.readers import assert_readable
from tests.world.conftest import World

PAGE: Final = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES: Final = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

TABLES: Final = (
    *("wat_manifest", "pair_parquet", "unique_pairs", "image_shards", "embeddings"),
    *("scored_pairs", "near_duplicates", "filtered_subset", "subset_portraits", SEGMENT_STATS),
)


@pytest.mark.parametrize("asset", TABLES)
def test_each_reader_counts_each_row_once(world: World, asset: str) -> None:
    stage, rows = partition_of(asset).stage, 0
    for key in world.keys:
        folder, manifest = world.lake.published(asset, key), world.lake.manifest(asset, key)
        parts = partition_of(asset).rows.paths(folder)
        assert {part.name for part in parts} <= {item["name"] for item in manifest.files}
        rows += rows_in(*parts)
        if stage:
            counts = manifest.stage(stage)
            # A row of the shards is a pair that was tried.
            assert rows_in(*parts) == (counts.n_in if stage == "images" else counts.kept)
    assert rows > 0
    table = partition_of(asset).rows
    columns = {*table.schema.names, *KEY_COLUMNS, *(["score_watermark"] if table.scores else [])}
    assert_readable(world.lake.root / asset, columns, rows)


def test_duckdb_and_pandas_give_the_partitions_key_back(world: World) -> None:
    folder = world.lake.root / "filtered_subset"
    expected = {
        (key.crawl, key.segment): world.lake.manifest("filtered_subset", key).stage("subset").kept
        for key in world.keys
    }
    rows = duckdb.sql(
        f"select crawl, segment, count(*) from '{folder}/**/*.parquet' group by all"
    ).fetchall()
    assert {(crawl, segment): n for crawl, segment, n in rows} == expected
    sizes = pd.read_parquet(folder).groupby(["crawl", "segment"], observed=True).size()
    assert {tuple(map(str, key)): int(n) for key, n in sizes.items()} == {
        (crawl, str(int(segment))): n for (crawl, segment), n in expected.items()
    }


def test_embedding_reader_reads_the_vectors_in_place_and_a_release_with_its_rows(
    world: World, tmp_path: Path
) -> None:
    for asset in ("embeddings", "filtered_subset"):
        folder = world.lake.published(asset, world.keys[0])
        for place in (image_path, text_path):
            vectors = np.load(place(folder, 0))
            reader = EmbeddingReader(
                embeddings_folder=str(place(folder, 0).parent), file_format="npy"
            )
            assert (reader.count, reader.dimension) == vectors.shape
            ((found, _),) = reader(batch_size=len(vectors), show_progress=False)
            np.testing.assert_array_equal(found, vectors)

    release = tmp_path / "release"
    command = ["export", "--config", str(world.config), "-o", str(release), "--without-indices"]
    assert main([*command, "--files", "2"]) == 0
    reader = EmbeddingReader(
        embeddings_folder=str(release / "img_emb"),
        metadata_folder=str(release / "metadata"),
        meta_columns=["SAMPLE_ID"],
        file_format="parquet_npy",
    )
    vector_of = {}
    for key in world.keys:
        folder = world.lake.published("filtered_subset", key)
        ids = duckdb.sql(f"select SAMPLE_ID from '{folder}/part-00000.parquet'").fetchnumpy()
        vector_of |= dict(
            zip(ids["SAMPLE_ID"].tolist(), np.load(image_path(folder, 0)), strict=True)
        )
    assert reader.count == len(vector_of)
    for vectors, rows in reader(batch_size=100, show_progress=False):
        for vector, sample in zip(vectors, rows["SAMPLE_ID"], strict=True):
            np.testing.assert_array_equal(vector, vector_of[sample])


def test_the_examples_of_the_page_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(EXAMPLES) == 1
    monkeypatch.chdir(world.root)
    exec(EXAMPLES[0], {})
