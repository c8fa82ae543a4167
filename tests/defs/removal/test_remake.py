"""What killed runs left in the making is looked through when samples are removed."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import layout, schemas
from laion_assets.defs.build import build_defs
from laion_assets.defs.removal.remake import _unfinished, drop_abandoned
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.removals.entry import key_of
from laion_assets.removals.ledger import RemovalCounts, note_removals
from laion_assets.settings import load_settings

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


ALL_OF_ONE = ("embeddings", "scored_pairs", "near_duplicates", "filtered_subset", "subset_unique")


@pytest.mark.parametrize(
    ("later", "unfinished"),
    [
        ([], False),
        # After a new head, or an upgrade: neither is made of the other.
        (["scored_pairs", "filtered_subset", "subset_unique"], False),
        (["near_duplicates", "subset_unique"], False),
        (["near_duplicates"], True),
        (["embeddings"], True),
        (["scored_pairs", "filtered_subset"], True),
        (["wat_manifest"], False),
    ],
)
def test_a_segment_is_unfinished_if_what_an_asset_is_made_of_is_newer(
    lake: LocalLake, tmp_path: Path, later: list[str], unfinished: bool
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[lake]\nroot = "{lake.root}"\n[subsets.unique]\nduplicates = "images"\n')
    for place, asset in enumerate(["wat_manifest", "pair_parquet", *ALL_OF_ONE]):
        with lake.publish(asset, KEY, inputs={}, code_version="1"):
            pass
        path = lake.folder(asset, KEY) / "_manifest.json"
        started = f"2026-01-0{2 if asset in later else 1}T00:00:{place:02}+00:00"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": started}))
    counts = RemovalCounts({("removals", key_of("url", LISTED)): 1})
    note_removals(lake.root, "pair_parquet", KEY, counts, run_id="r", returns=False)
    definitions = build_defs(load_settings(config))
    assert list(_unfinished(lake, definitions)) == [KEY] * unfinished
