from __future__ import annotations

import pytest

from laion_assets.defs.partitions import partition_key, segment_key
from laion_assets.layout import SegmentKey, segment_names


def test_a_key_goes_through_dagster_and_back() -> None:
    key = SegmentKey("CC-MAIN-2021-04", "07")
    assert segment_key(partition_key(key)) == key
    assert segment_key(str(partition_key(key))) == key
    assert SegmentKey.parse(str(key)) == key
    assert key.hive == "crawl=CC-MAIN-2021-04/segment=07"


@pytest.mark.parametrize("bad", ["CC-MAIN-2021-04|7", "../x|00", "CC-MAIN-2021-04", "|00", "a|b|c"])
def test_a_key_that_is_no_segment_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        SegmentKey.parse(bad)


def test_segment_names() -> None:
    assert segment_names(3) == ["00", "01", "02"]
    assert segment_names(100)[-1] == "99"
