"""A removed person's picture leaves the pages of the drawn samples."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets.defs.assets.dataset_report import SHOWS_SAMPLES, fit_to_show
from laion_assets.defs.build import build_defs
from laion_assets.defs.removal.remake import apply, withdraw_samples
from laion_assets.defs.removal.survey import Survey
from laion_assets.generation.evaluation import Real
from laion_assets.generation.pairs import Pairs, captions_of
from laion_assets.generation.shown_samples import SHOWN, may_be_shown, shows_listed, write_shown
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.removals.active import Lists, read_lists
from laion_assets.removals.entries import parse
from laion_assets.settings import load_settings
from tests.conftest import heard

from .conftest import CRAWL, SEGMENT, MakeShards

KEY = SegmentKey(CRAWL, SEGMENT)


def listing(entry: str) -> Lists:
    return Lists(removals=parse([entry], "test"))


def write(out: Path, pairs: Pairs) -> dict[str, object]:
    """Show two held-out pairs of different shards, and return the first one's row."""
    numbers = pairs.held_out[[0, -1]]
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    caption = captions_of(pairs, numbers[:1])[0]
    write_shown(out, pairs, [Real(caption, numbers, pixels, 0.4, 0.4, 0.3, 0.1)])
    rows = pq.ParquetFile(out / SHOWN).read().to_pylist()
    places = map(pairs.place, numbers.tolist())
    keys = [pairs.shards[shard].keys()[row] for shard, row in places]
    assert [row["URL"] for row in rows] == [f"https://drawings.test/{key}.jpg" for key in keys]
    return dict(rows[0])


def test_samples_may_be_shown_while_the_subset_has_all_and_no_list_names_one(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    pairs = Pairs(make_shards(tmp_path / "shards", 2, 12), 0.3, 0)
    subset = tmp_path / "shards" / "subset"
    row = write(tmp_path, pairs)
    assert may_be_shown(tmp_path, listing("host:example.org"), lambda _: subset)
    for entry in (
        str(row["URL"]),
        "host:drawings.test",
        f"sha256:{row['sha256']}",
        f"md5:{row['md5']}",
        f"sample-id:{row['SAMPLE_ID']}",
    ):
        assert shows_listed(tmp_path, listing(entry)), entry
        assert not may_be_shown(tmp_path, listing(entry), lambda _: subset), entry
    assert not may_be_shown(tmp_path, Lists(), lambda _: tmp_path / "nothing")
    pairs.shards[0].part.unlink()
    assert not may_be_shown(tmp_path, Lists(), lambda _: subset)
    assert not shows_listed(tmp_path, Lists())
    # Without a record, the worst is assumed.
    (tmp_path / SHOWN).unlink()
    assert shows_listed(tmp_path, listing("host:example.org"))
    assert not shows_listed(tmp_path, Lists())


def test_a_removal_deletes_samples_that_show_the_picture_and_the_report_does_without(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, lines = LocalLake.at(tmp_path / "lake"), list[str]()
    shards = make_shards(tmp_path / "shards", 2, 12)
    with lake.publish("filtered_subset", KEY, inputs={}, code_version="1") as staging:
        (staging.path / shards[0].part.name).hardlink_to(shards[0].part)
    assert not fit_to_show(lake)
    with lake.publish("dalle_samples", inputs={}, code_version="1") as staging:
        row = write(staging.path, Pairs(shards, 0.3, 0))
    removals = lake.root / "removals" / "requests.txt"
    removals.parent.mkdir()
    removals.write_text("host:example.org\n")
    assert fit_to_show(lake)
    with heard(lines.append):
        withdraw_samples(lake)
    assert lake.has("dalle_samples")
    assert not lines

    removals.write_text(f"{row['URL']}\n")
    assert read_lists(lake.root)
    assert not fit_to_show(lake)
    with lake.publish("dataset_report", inputs={}, code_version="1") as staging:
        staging.metadata = {SHOWS_SAMPLES: True}
    made = list[str]()
    monkeypatch.setattr("laion_assets.defs.removal.remake._run", lambda *args: made.extend(args[3]))
    settings = load_settings()
    with dg.DagsterInstance.ephemeral() as instance, heard(lines.append):
        apply(lake, instance, build_defs(settings), Survey())
    assert not lake.has("dalle_samples")
    assert not list(lake.root.rglob(SHOWN))
    assert "materialize dalle_samples" in lines[0]
    assert made == ["dataset_report"]
    with heard(lines.append):
        withdraw_samples(lake)
    assert len(lines) == 1
