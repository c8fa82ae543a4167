"""The table of what a partition holds, against what is written and what removals look into."""

from __future__ import annotations

from typing import Final, get_args

import pytest

from docs.formats import PAGES, rewritten
from laion_assets import layout, schemas
from laion_assets.defs import build
from laion_assets.defs.removal.listed import ROWS
from laion_assets.funnel import REASONS
from laion_assets.layout import OVER_ALL, PARTITIONS, Table, partition_of, subset_asset
from laion_assets.settings import Followed

NAMES_A_SAMPLE: Final = {
    "url": ("url", "URL"),
    "text": ("text", "TEXT", "caption"),
    "uid": ("uid",),
    "sample_id": ("SAMPLE_ID",),
}
TABLES: Final = [
    pytest.param(partition.asset, table, id=f"{partition.asset}-{table.files}")
    for partition in (*PARTITIONS.values(), *OVER_ALL.values())
    for table in partition.tables
]


@pytest.mark.parametrize(("asset", "table"), TABLES)
def test_a_column_that_names_a_sample_is_declared(asset: str, table: Table) -> None:
    columns = set(table.schema.names)
    for role, possible in NAMES_A_SAMPLE.items():
        if role == "text" and "url" not in columns | {"URL"}:
            continue
        present = columns.intersection(possible)
        assert {getattr(table, role)} - {None} == present or table.aligned, (asset, role)
    assert table.hashes == ({"sha256", "md5"} <= columns) or table.aligned, asset


@pytest.mark.parametrize(("asset", "table"), TABLES)
def test_removals_reach_every_table_that_names_samples(asset: str, table: Table) -> None:
    """A row is found in the asset's first table, or in one whose rows come and go with those."""
    if not table.names_samples or asset == layout.DALLE_SAMPLES:
        return  # the samples are withdrawn as a whole: tests/generation/test_shown_samples.py
    assert ROWS[asset] is partition_of(asset).rows
    assert table is ROWS[asset] or table.aligned


@pytest.mark.parametrize(("asset", "table"), TABLES)
def test_every_column_has_a_meaning(asset: str, table: Table) -> None:
    assert all(meaning for _, _, meaning in table.columns()), asset


def test_the_graph_has_the_layouts_assets_in_its_order() -> None:
    assert [module.ASSET.name for module in build.BY_SEGMENT] == list(PARTITIONS)
    assert [module.ASSET.name for module in build.OVER_ALL] == list(OVER_ALL)


def test_the_settings_name_what_can_be_followed() -> None:
    made_of_something = set(PARTITIONS) - {layout.WAT_MANIFEST}
    assert set(get_args(Followed)) == made_of_something | {"subsets"}


def test_a_further_subset_holds_what_the_main_one_does() -> None:
    name = subset_asset("laion5b-en")
    further, main = partition_of(name), partition_of(layout.FILTERED_SUBSET)
    assert [table.schema for table in further.tables] == [table.schema for table in main.tables]
    assert further.rows.view == name == "subset_laion5b_en"
    assert further.names("_img_emb/img_emb_00000.npy")
    assert not further.names("ids.parquet")


def test_an_unknown_asset_is_an_error() -> None:
    with pytest.raises(KeyError):
        partition_of("subsets")


@pytest.mark.parametrize("name", PAGES)
def test_tables_of_the_docs_are_made_from_the_code(name: str) -> None:
    page, as_it_should_be = rewritten(name)
    assert page == as_it_should_be, "make docs"


def test_the_docs_have_every_reason_for_a_refusal() -> None:
    page, _ = rewritten("refusals")
    for stage, reasons in REASONS.items():
        for reason, meaning in reasons.items():
            assert f"\n| `{stage}` | `{reason}` | {meaning} |" in page


def test_sizes_of_the_stored_and_of_the_original_image_are_told_apart() -> None:
    assert schemas.meaning("width", images=True) != schemas.meaning("width")
