"""What the demo says that it will build, and why."""

from __future__ import annotations

from laion_assets.demo.driver import Needs
from laion_assets.layout import SegmentKey


def test_reasons_name_new_crawls_then_segments_then_the_rest() -> None:
    first, second = SegmentKey("CC-MAIN-2000-05", "00"), SegmentKey("CC-MAIN-2000-05", "01")
    found = Needs(
        unknown=[SegmentKey("CC-MAIN-2000-10", "00"), SegmentKey("CC-MAIN-2000-10", "01")],
        missing={second: {"embeddings": "not materialized", "knn_index": "not materialized"}},
        stale={first: {"pair_parquet": "removals changed", "embeddings": "its folder is gone"}},
        aggregates={"catalog": "not materialized"},
    )
    assert found
    assert found.reasons() == [
        "CC-MAIN-2000-10: a new crawl",
        f"{first}: pair_parquet (removals changed)",
        f"{first}: embeddings (its folder is gone)",
        f"{second}: embeddings, knn_index (not materialized)",
        "all segments: catalog (not materialized)",
    ]


def test_a_world_that_is_up_to_date_needs_nothing() -> None:
    assert not Needs()
    assert Needs().reasons() == []
