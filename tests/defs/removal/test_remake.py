"""What killed runs left in the making is looked through when samples are removed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import layout, schemas
from laion_assets.defs.removal.remake import drop_abandoned
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey

KEY = SegmentKey("CC-MAIN-2000-05", "00")
LISTED, OTHER = "http://listed.test/a.jpg", "http://other.test/b.jpg"


class Killed(BaseException):
    pass


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    (tmp_path / "removals").mkdir()
    (tmp_path / "removals" / "mine.txt").write_text(f"{LISTED}\n")
    return LocalLake.at(tmp_path)


def leave(lake: LocalLake, asset: str, key: SegmentKey | None, name: str, url: str) -> None:
    """A run of ``asset`` writes a file and is killed."""
    with pytest.raises(Killed), lake.publish(asset, key, inputs={}, code_version="1") as staging:
        (staging.path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            row = {"uid": schemas.uid_of(url, "text"), "url": url, "text": "text"}
            rows = pa.Table.from_pylist([row], schemas.PAIRS)
            pq.write_table(rows, staging.path / name)
        else:
            (staging.path / name).write_bytes(b"bytes that nobody can look through")
        raise Killed


def left(lake: LocalLake) -> set[str]:
    return {found.asset for found in lake.abandoned()}


def test_tables_go_if_they_hold_listed_rows(lake: LocalLake) -> None:
    leave(lake, layout.PAIR_PARQUET, KEY, "part-00000.parquet", LISTED)
    leave(lake, layout.UNIQUE_PAIRS, KEY, "part-00000.parquet", OTHER)
    drop_abandoned(lake)
    assert left(lake) == {layout.UNIQUE_PAIRS}


@pytest.mark.parametrize("asset", [*layout.OVER_ALL, "an_asset_of_tomorrow"])
def test_what_has_no_rows_by_segment_goes_in_any_case(lake: LocalLake, asset: str) -> None:
    leave(lake, asset, None, "some.file", OTHER)
    assert left(lake) == {asset}
    drop_abandoned(lake)
    assert left(lake) == set()


def test_without_lists_everything_stays(lake: LocalLake) -> None:
    leave(lake, layout.CATALOG, None, "catalog.duckdb", OTHER)
    (lake.root / "removals" / "mine.txt").unlink()
    drop_abandoned(lake)
    assert left(lake) == {layout.CATALOG}
