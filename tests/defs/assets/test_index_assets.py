"""The index assets through Dagster, on subsets of two segments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dagster as dg
import faiss
import numpy as np
import pytest

from laion_assets.defs.assets import index_codec, knn_index, search_index
from laion_assets.defs.partitions import crawls, segment_partitions
from laion_assets.filtering.subset import TakenWith
from laion_assets.funnel import StageCounts
from laion_assets.knn.files import IndexSummary
from laion_assets.knn.search import Searcher
from laion_assets.knn.subset import SubsetPart
from laion_assets.lake import MANIFEST, LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.settings import Settings
from resources.lake import LakeResource
from resources.rules import IndexResource
from tests.knn.conftest import MODEL
from tests.knn.test_codec import CRAWL, write_subset

KEYS = [SegmentKey(CRAWL, f"{number:02d}") for number in range(3)]
ROWS = 2_000


class Graph:
    """The three assets over a lake that has subsets already."""

    def __init__(self, root: Path, **options: Any) -> None:
        settings = Settings()
        segments = segment_partitions(3)
        self.lake = LocalLake.at(root / "lake")
        self.assets = [
            index_codec.build(settings),
            knn_index.build(segments, settings),
            search_index.build(settings),
        ]
        self.instance = dg.DagsterInstance.ephemeral()
        self.instance.add_dynamic_partitions(crawls.name or "", [CRAWL])
        self.resources = {
            "lake": LakeResource(root=str(root / "lake")),
            "index": IndexResource(**options),
        }
        self.model = MODEL
        """The one that made the next subset's vectors."""
        self._made = 0

    def subset(self, key: SegmentKey, seed: int, rows: int = ROWS, away: float = 0) -> None:
        self._made += 1
        with self.lake.publish(
            "filtered_subset", key, inputs={"n": str(self._made)}, code_version="1"
        ) as staging:
            write_subset(staging.path, key.segment, seed, rows, away)
            staging.counts.append(StageCounts("subset", rows, rows, {}))
            taken = TakenWith(**self.model.model_dump(), recipe="r v1", threshold=0.3)
            staging.metadata = taken.model_dump()

    def make(self, name: str, key: SegmentKey | None = None) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            self.assets,
            selection=[name],
            instance=self.instance,
            resources=self.resources,
            partition_key=dg.MultiPartitionKey({"crawl": key.crawl, "segment": key.segment})
            if key
            else None,
            raise_on_error=False,
        )


def failure(result: dg.ExecuteInProcessResult) -> str:
    (event,) = (event for event in result.all_events if event.is_step_failure)
    return event.step_failure_data.error_display_string


def warnings(result: dg.ExecuteInProcessResult) -> list[str]:
    assert result.success
    return [
        check.description or ""
        for check in result.get_asset_check_evaluations()
        if not check.passed
    ]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    faiss.omp_set_num_threads(1)


def test_segments_are_flat_until_a_codec_is_made_and_then_grow(tmp_path: Path) -> None:
    graph = Graph(
        tmp_path,
        kind="auto",
        flat_below=3_000,
        cells=64,
        min_recall=0.8,  # 64 dimensions are few for a bit each
        recall_queries=30,
        vectors=8_000,
    )
    for seed, key in enumerate(KEYS[:2]):
        graph.subset(key, seed)
        assert warnings(graph.make("knn_index", key)) == []
    advice = warnings(graph.make("search_index"))
    assert advice == ["4,000 vectors are searched one by one, more than 3,000"]

    assert warnings(graph.make("index_codec")) == []
    codec = graph.lake.manifest("index_codec").metadata
    assert (codec["kind"], codec["segments"]) == ("ivf_rabitq", 2)
    for key in KEYS[:2]:
        assert warnings(graph.make("knn_index", key)) == []
    assert warnings(graph.make("search_index")) == []
    before = graph.lake.manifest("search_index")

    # Another segment: its own files are in the index, and those of before.
    graph.subset(KEYS[2], 2)
    assert warnings(graph.make("knn_index", KEYS[2])) == []
    assert warnings(graph.make("search_index")) == []
    folder = graph.lake.folder("search_index")
    summary = IndexSummary.read(folder)
    assert (summary.n, len(summary.runs), summary.codecs()) == (3 * ROWS, 3, [codec["id"]])
    run = folder / summary.runs[-1].folder
    own = graph.lake.folder("knn_index", KEYS[2])
    assert (run / "image.lists").samefile(own / "image.lists")
    after = graph.lake.manifest("search_index")
    assert before.data_version != after.data_version
    own_digests = {f["name"]: f["sha256"] for f in graph.lake.manifest("knn_index", KEYS[2]).files}
    digests = {f["name"]: f["sha256"] for f in after.files}
    name = f"{summary.runs[-1].folder}/image.lists"
    assert digests[name] == own_digests["image.lists"]

    # The manifests of what was merged before are not read again: here they cannot be.
    manifests = [graph.lake.folder("knn_index", key) / MANIFEST for key in KEYS[1:]]
    whole = [path.read_bytes() for path in manifests]
    _overwrite(manifests, [b"{" + b" " * (len(content) - 1) for content in whole])
    subset = graph.lake.folder("filtered_subset", KEYS[0])
    graph.subset(KEYS[0], 0, rows=ROWS - 1)
    assert warnings(graph.make("knn_index", KEYS[0])) == []
    assert warnings(graph.make("search_index")) == []
    assert IndexSummary.read(folder).n == 3 * ROWS - 1
    _overwrite(manifests, whole)

    # A segment with other samples replaces its own; the searcher that was open goes on meanwhile,
    # and finds what is still in the subsets.
    searcher = Searcher(folder, lambda key: graph.lake.folder("filtered_subset", key))
    query = SubsetPart(subset, 0).vectors("image")[:1].astype(np.float32)
    scores, rows = searcher.nearest(query, 5)
    assert searcher.places(rows[0])[0].segment == KEYS[0].segment
    graph.subset(KEYS[0], 50, rows=500)
    assert warnings(graph.make("knn_index", KEYS[0])) == []
    assert warnings(graph.make("search_index")) == []
    assert IndexSummary.read(folder).n == 2 * ROWS + 500
    left, rows = searcher.nearest(query, 5)
    assert KEYS[0].segment not in {place.segment for place in searcher.places(rows[0])}
    assert np.isfinite(left).all()
    assert left[0, 0] < scores[0, 0]

    # Vectors of another kind are indexed, with a warning that asks for another codec.
    graph.subset(KEYS[1], 60, away=0.7)
    advice = warnings(graph.make("knn_index", KEYS[1]))
    assert "image drift" in advice[0]
    assert "is over 1.15" in advice[0]


def _overwrite(paths: list[Path], contents: list[bytes]) -> None:
    """Change files in place, and let them look as if they had not been touched."""
    for path, content in zip(paths, contents, strict=True):
        about = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_an_index_below_the_recall_asked_for_is_not_published(tmp_path: Path) -> None:
    graph = Graph(
        tmp_path, kind="ivf_rabitq", cells=64, rerank=False, recall_queries=30, vectors=8_000
    )
    graph.subset(KEYS[0], 0)
    refused = graph.make("knn_index", KEYS[0])
    assert not refused.success, "no codec has been made"
    assert graph.make("index_codec").success
    refused = graph.make("knn_index", KEYS[0])
    assert not refused.success, "64 bits a vector find too little"
    assert not graph.lake.has("knn_index", KEYS[0])


def test_an_index_is_of_the_model_of_its_vectors_and_of_one(tmp_path: Path) -> None:
    graph = Graph(tmp_path, kind="flat", recall_queries=30)
    graph.subset(KEYS[0], 0, rows=300)
    # The same weights under another name are the same model; other weights are not.
    graph.model = MODEL.model_copy(update={"model": "local-dir:/elsewhere"})
    graph.subset(KEYS[1], 1, rows=300)
    for key in KEYS[:2]:
        assert graph.make("knn_index", key).success
    assert graph.make("search_index").success
    folder = graph.lake.folder("search_index")
    assert IndexSummary.read(folder).model_version == MODEL.model_version

    graph.model = MODEL.model_copy(update={"model_version": "2"})
    graph.subset(KEYS[2], 2, rows=300)
    assert graph.make("knn_index", KEYS[2]).success
    before = graph.lake.manifest("search_index").data_version
    for asset in ("search_index", "index_codec"):
        message = failure(graph.make(asset))
        # Which segments are of which model, and what to materialize in what order.
        assert f"(version 2): {KEYS[2]}" in message
        assert f"(version {MODEL.model_version}): {KEYS[0]}, {KEYS[1]}" in message
        assert "materialize embeddings, scored_pairs and filtered_subset of the segm" in message
    assert graph.lake.manifest("search_index").data_version == before
