"""All kinds of lists as crawls of the graph, with captions and without, through to a release."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dagster as dg
import numpy as np
import pytest

from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.vectors import has_texts
from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.knn.files import IndexSummary
from laion_assets.knn.query import QueryError, search_text
from laion_assets.lake import LocalLake
from laion_assets.layout import PARTITIONS, SegmentKey
from laion_assets.pairs.rules import PairRules
from laion_assets.release.export import export
from laion_assets.sample_crawl.server import SampleServer
from laion_assets.settings import Settings
from laion_assets.stats.why import why
from laion_assets.tables import read_parquet
from laion_assets.url_lists.options import ReadOptions, UrlListOptions
from laion_assets.url_lists.url_list import pairs_of_list
from tests.world.conftest import sample_settings

DATA: Final = Path(__file__).parents[1] / "url_lists" / "data"
ROWS: Final = {
    **dict.fromkeys(("laion400m.parquet", "relaion.parquet", "datacomp.parquet"), 24),
    **dict.fromkeys(("coyo.parquet", "cc12m.tsv", "list.csv", "list.jsonl", "spark"), 24),
    **{"dirty.parquet": 8, "laion-columns/laion.parquet": 3, "laion-columns/folder": 4},
    "laion-columns/caption-col.parquet": 3,
}
"""Files and folders of lists with captions, and their rows."""
EVERY, BARE = SegmentKey("LIST-every", "00"), SegmentKey("LIST-bare", "00")
"""All of these as one list, and the list of URLs alone."""


@dataclass
class Lists:
    """A deployment whose crawls are two lists, made through to the report."""

    settings: Settings
    model: ClipModel

    @property
    def lake(self) -> LocalLake:
        return LocalLake(self.settings.lake)

    def folder(self, asset: str, key: SegmentKey | None = None) -> Path:
        return self.lake.folder(asset, key)

    def rows(self, asset: str, key: SegmentKey) -> list[dict[str, object]]:
        (part,) = PARTITIONS[asset].rows.paths(self.folder(asset, key))
        return list(read_parquet(part).to_pylist())


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory, sample_server: SampleServer) -> Iterator[Lists]:
    root = tmp_path_factory.mktemp("lists")
    _, settings = sample_settings(root, sample_server)
    settings = settings.model_copy(
        update={
            "lists": (
                UrlListOptions(name="every", files=tuple(str(DATA / file) for file in ROWS)),
                UrlListOptions(name="bare", files=(str(DATA / "urls.txt"),), captions=False),
            ),
            "subsets": {},
            "work": settings.work.model_copy(update={"workers": 1}),
            "pairs": settings.pairs.model_copy(update={"languages": []}),
        }
    )
    defs = build_defs(settings)
    (root / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(root / "home")) as instance:
        instance.add_dynamic_partitions(crawls.name or "", [EVERY.crawl, BARE.crawl])
        segment, aggregates = map(defs.resolve_job_def, ("segment", "aggregates"))
        for key in (EVERY, BARE):
            made = segment.execute_in_process(instance=instance, partition_key=partition_key(key))
            assert made.success
        of_all = [dg.AssetKey(asset) for asset in ("search_index", "catalog")]
        assert aggregates.execute_in_process(instance=instance, asset_selection=of_all).success
        yield Lists(settings, load_clip(settings.clip))


def test_every_file_becomes_pairs(lists: Lists) -> None:
    counts = lists.lake.manifest("pair_parquet", EVERY).stage("pairs")
    assert counts.n_in == sum(ROWS.values())
    # Most have the same rows. What is dirty ends here for the reasons of tests/url_lists.
    assert {"duplicate", "no_alt", "alt_too_long"} == {*counts.rejects}
    files = {str(row["wat_file"]).partition("#")[0] for row in lists.rows("wat_manifest", EVERY)}
    assert len(files) == len(ROWS) + 2, "two folders have two files each"
    assert all(row["text"] for row in lists.rows("pair_parquet", EVERY))


def test_images_without_captions_are_taken_by_the_other_rules(lists: Lists) -> None:
    pairs = lists.rows("pair_parquet", BARE)
    assert {row["text"] for row in pairs} == {None}
    subset = lists.folder("filtered_subset", BARE)
    for asset in ("embeddings", "filtered_subset"):
        assert not has_texts(lists.folder(asset, BARE))
        assert has_texts(lists.folder(asset, EVERY))
    scored = lists.rows("scored_pairs", BARE)
    assert {row["similarity"] for row in scored} == {None}
    counts = lists.lake.manifest("filtered_subset", BARE).stage("subset")
    assert counts.kept == len(scored) - sum(counts.rejects.values())
    assert "below_threshold" not in counts.rejects
    assert lists.lake.manifest("filtered_subset", BARE).metadata["threshold"] is None
    assert lists.lake.manifest("filtered_subset", EVERY).metadata["threshold"] == 0.31
    images = np.load(subset / "_img_emb" / "img_emb_00000.npy")
    assert len(images) == counts.kept > 15
    (story,) = [each for each in why(lists.lake, str(pairs[0]["url"])).stories if each.key == BARE]
    said = "\n".join(story.lines())
    assert "no caption, SAMPLE_ID" in said
    assert "no threshold" in said


def test_both_are_searched_as_one(lists: Lists, tmp_path: Path) -> None:
    index = lists.folder("search_index")
    kept = {
        key: lists.lake.manifest("filtered_subset", key).stage("subset").kept
        for key in (EVERY, BARE)
    }
    summary = IndexSummary.read(index)
    assert summary.n == sum(kept.values())
    assert {len(run.modalities): run.n for run in summary.runs} == {2: kept[EVERY], 1: kept[BARE]}
    n = summary.n
    found = search_text(index, "a hot pepper", lists.model, n)
    assert len(found) == n
    assert {hit.ref.crawl for hit in found} == {EVERY.crawl, BARE.crawl}
    assert len(search_text(index, "a hot pepper", lists.model, n, "text")) == kept[EVERY]
    own = lists.folder("knn_index", BARE)
    subset = lists.folder("filtered_subset", BARE)
    assert len(search_text(own, "a hot pepper", lists.model, n, subset=subset)) == kept[BARE]
    with pytest.raises(QueryError, match="images without captions"):
        search_text(own, "a hot pepper", lists.model, 1, "text", subset)


def test_a_release_has_the_captioned_and_loads_back(lists: Lists, tmp_path: Path) -> None:
    out = tmp_path / "release"
    manifest = export(lists.lake, out, files=2)
    kept = lists.lake.manifest("filtered_subset", EVERY).stage("subset").kept
    left_out = lists.lake.manifest("filtered_subset", BARE).stage("subset").kept
    assert (manifest["samples"], manifest["left_out"]["no_caption"]) == (kept, left_out)
    pairs = tmp_path / "pairs.parquet"
    rules = PairRules(languages=[])
    made = pairs_of_list([str(out)], pairs, rules, ReadOptions(), workers=1)
    assert made.counts.kept == kept
    loaded = read_parquet(pairs).to_pylist()
    released = lists.rows("filtered_subset", EVERY)
    key = ("url", "text", "source_SAMPLE_ID", "source_similarity", "license")
    names = ("URL", "TEXT", "SAMPLE_ID", "similarity", "LICENSE")
    assert [[row[name] for name in key] for row in loaded] == [
        [row[name] for name in names] for row in released
    ]
    for row in loaded:
        assert int.from_bytes(row["uid"][:8], "big", signed=True) == row["source_SAMPLE_ID"]
