"""Which stale assets one run can rebuild."""

from __future__ import annotations

import dagster as dg
import pytest

from laion_assets.defs.build import build_defs
from laion_assets.defs.jobs import runnable
from laion_assets.layout import SEGMENT_ASSETS
from laion_assets.settings import load_settings, sample_config


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_defs(load_settings(sample_config()))


@pytest.mark.parametrize(
    ("stale", "chosen"),
    [
        (SEGMENT_ASSETS, SEGMENT_ASSETS),
        ((), ()),
        (("segment_stats",), ("segment_stats",)),
        # The scores become stale by the run, and the statistics compare them with the embeddings.
        (("embeddings", "segment_stats"), ("embeddings",)),
        (("image_shards", "embeddings", "segment_stats"), ("image_shards", "embeddings")),
        (("scored_pairs", "filtered_subset"), ("scored_pairs", "filtered_subset")),
        (("pair_parquet", "knn_index"), ("pair_parquet",)),
    ],
)
def test_what_depends_on_something_that_may_become_stale_waits(
    definitions: dg.Definitions, stale: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    assert runnable(definitions, SEGMENT_ASSETS, stale) == list(chosen)
