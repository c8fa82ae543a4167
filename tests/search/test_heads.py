"""Heads in search: filters and order by their scores, and a query moved along one's direction."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.heads.head import shipped_heads
from laion_assets.heads.score import Scorer
from laion_assets.knn.query import subset_beside
from laion_assets.knn.samples import Samples
from laion_assets.layout import SegmentKey
from laion_assets.search.filters import Filters
from laion_assets.search.find import find
from laion_assets.search.heads import SearchHeads
from laion_assets.search.live_index import IndexVersion
from laion_assets.tables import part_path
from tests.heads.conftest import write_linear
from tests.search.conftest import (
    FIRST,
    SECOND,
    Serving,
    SmallLake,
    add_scores,
    note_heads,
    rows,
    serving,
)


def test_the_shipped_heads_are_of_the_shipped_model(small_lake: SmallLake) -> None:
    assert shipped_heads() == ["watermark-tiny"]
    head = Scorer.load("watermark", "watermark-tiny").head
    assert head.identity == small_lake.model.identity
    figures = head.calibration["held_out_art"]
    assert min(figures["auc_taught_styles"], figures["auc_held_out_styles"]) > 0.5


def test_the_page_is_offered_the_heads_that_scored_samples(scored: Serving) -> None:
    offered = scored.http.get("/about").json()["heads"]
    assert [(head["name"], head["keep"]) for head in offered] == [
        ("aesthetic", "high"),
        ("watermark", "low"),
    ]


def test_results_are_bounded_and_sorted_by_scores(scored: Serving) -> None:
    ask = partial(scored.results, text="a picture", limit=100, fold=False, safe=False)
    every = ask()
    assert len(every) == 30
    bound = sorted(result["score_aesthetic"] for result in every)[15]
    least = ask(min_scores={"aesthetic": bound})
    assert {r["sample"] for r in least} == {
        r["sample"] for r in every if r["score_aesthetic"] >= bound
    }
    # Samples that a head did not score pass no bound on it.
    most = ask(max_scores={"watermark": 1.0})
    assert len(most) == 20
    assert {result["crawl"] for result in most} == {FIRST.crawl}

    best = [result["score_aesthetic"] for result in ask(order_by="aesthetic")]
    assert best == sorted(best, reverse=True)
    by_mark = ask(order_by="watermark")
    marks = [result["score_watermark"] for result in by_mark[:20]]
    assert marks == sorted(marks)
    assert all("score_watermark" not in result for result in by_mark[20:])
    # Pages of a sorted search are parts of one order.
    pages: list[dict[str, Any]] = []
    while len(pages) < 30:
        pages += ask(order_by="aesthetic", limit=7, offset=len(pages))
    assert [result["score_aesthetic"] for result in pages] == best


def test_a_head_that_scored_one_small_segment_is_offered(
    heads: list[Scorer], own_lake: SmallLake
) -> None:
    small = SegmentKey(FIRST.crawl, "01")
    own_lake.write(small, rows()[1][:1])
    own_lake.publish(FIRST, small, SECOND)
    add_scores(own_lake, small, heads[:1])
    subsets = subset_beside(own_lake.index)
    version = IndexVersion(own_lake.index, "newest", subsets)
    offered = SearchHeads(heads, subsets).shown(version)
    assert [head["name"] for head in offered] == ["aesthetic"]


def test_scores_of_another_version_of_a_head_are_left_out(
    heads: list[Scorer], own_lake: SmallLake
) -> None:
    add_scores(own_lake, FIRST, heads[:1])
    add_scores(own_lake, SECOND, heads[:1])
    note_heads(own_lake, SECOND, {"aesthetic": "0" * 16})
    with serving(own_lake.index, own_lake.model, heads=heads[:1]) as running:
        assert [head["name"] for head in running.http.get("/about").json()["heads"]]
        ask = partial(running.results, text="a picture", limit=100, fold=False, safe=False)
        assert len(ask()) == 30
        assert {one["crawl"] for one in ask() if "score_aesthetic" in one} == {FIRST.crawl}
        assert {one["crawl"] for one in ask(min_scores={"aesthetic": -9})} == {FIRST.crawl}
        (problem,) = running.http.get("/healthz").json()["heads"]
    assert problem.startswith("1 of 2 segments were scored by another version of the head aesthet")


def test_a_bound_is_compared_as_scores_are_stored(heads: list[Scorer], own_lake: SmallLake) -> None:
    add_scores(own_lake, FIRST, heads[:1])
    part = part_path(own_lake.lake.folder("filtered_subset", FIRST), 0)
    table = pq.ParquetFile(part).read()
    same = pa.array([0.7] * len(table), pa.float32())
    pq.write_table(table.set_column(table.num_columns - 1, "score_aesthetic", same), part)
    samples = Samples(subset_beside(own_lake.index), heads={"aesthetic": heads[0].head.digest})
    version = IndexVersion(own_lake.index, "newest", subset_beside(own_lake.index))
    vector = np.ones(heads[0].head.dim, np.float32)
    for bounds in ({"min_scores": {"aesthetic": 0.7}}, {"max_scores": {"aesthetic": 0.7}}):
        found = find(
            *(version, samples, vector, "image", 100, Filters(**bounds)),
            fold_above=None,
            max_candidates=100,
        )
        assert len(found.results) == 20


@pytest.mark.parametrize("asked", [{"order_by": "beauty"}, {"min_scores": {"beauty": 1}}])
def test_an_unknown_head_is_refused(scored: Serving, asked: dict[str, object]) -> None:
    answer = scored.http.post("/search", json={"text": "a picture", **asked})
    assert answer.status_code == 422
    assert answer.json()["reason"] == "no_head"
    assert "aesthetic, new, watermark" in answer.json()["detail"]


def test_clip_retrievals_aesthetic_parameters_move_the_query(scored: Serving) -> None:
    def asked(**more: object) -> list[dict[str, Any]]:
        answer = scored.http.post("/knn-service", json={"text": "a dog", "num_images": 30, **more})
        assert answer.status_code == 200
        assert "X-Ignored-Parameters" not in answer.headers
        return list(answer.json())

    def mean(results: list[dict[str, Any]]) -> float:
        return float(np.mean([result["score_aesthetic"] for result in results[:5]]))

    plain, more, less = asked(), asked(aesthetic_score=9), asked(aesthetic_score=0)
    assert mean(more) > mean(plain) > mean(less)
    assert asked(aesthetic_score=9, aesthetic_weight=0) == plain
    # A heavy weight leaves nothing of the query: the order is that of the scores.
    strong = asked(aesthetic_score=9, aesthetic_weight=100)
    assert [result["score_aesthetic"] for result in strong[:10]] == sorted(
        (result["score_aesthetic"] for result in strong), reverse=True
    )[:10]
    assert (
        scored.http.post("/knn-service", json={"text": "a dog", "aesthetic_score": 10}).status_code
        == 422
    )


def test_without_an_aesthetic_head_the_parameters_are_named_as_ignored(served: Serving) -> None:
    asked = {"text": "a dog", "aesthetic_score": 9, "use_mclip": True}
    answer = served.http.post("/knn-service", json=asked)
    assert answer.headers["X-Ignored-Parameters"] == "use_mclip, aesthetic_score"
    assert served.http.get("/about").json()["heads"] == []


def test_a_head_of_another_model_has_no_say(
    heads: list[Scorer], tmp_path: Path, small_lake: SmallLake
) -> None:
    weights = np.ones(heads[0].head.dim)
    other = Scorer.load("aesthetic", str(write_linear(tmp_path / "other.json", weights)))
    with serving(small_lake.index, small_lake.model, heads=[other]) as running:
        asked = {"text": "a dog", "aesthetic_score": 9}
        answer = running.http.post("/knn-service", json=asked)
    assert answer.headers["X-Ignored-Parameters"] == "aesthetic_score"
