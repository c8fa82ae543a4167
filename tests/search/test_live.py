"""A newer index takes the older one's place while requests are under way."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial

import httpx

from laion_assets.knn.query import subset_beside
from laion_assets.search.live import LiveIndex
from tests.search.conftest import FIRST, SECOND, SmallLake, rows, serving


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def test_a_new_index_is_taken_without_dropping_a_request(own_lake: SmallLake) -> None:
    own_lake.publish(FIRST)
    vector = own_lake.model.encode_texts(["a slice of pizza"])[0].tolist()
    answers: list[tuple[int, int]] = []
    stop = threading.Event()

    with serving(own_lake.index, own_lake.model) as served:

        def ask() -> None:
            with httpx.Client(base_url=served.url, timeout=20) as http:
                while not stop.is_set():
                    asked = {"embedding_input": vector, "num_images": 60}
                    answer = http.post("/knn-service", json=asked)
                    whole = [row for row in answer.json() if row["url"] and row["caption"]]
                    answers.append((answer.status_code, len(whole)))

        def asked_since(swaps: int, done: int) -> bool:
            return served.service.live.swaps > swaps and len(answers) > done + 10

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        old = weakref.ref(served.service.live.current)
        until(lambda: len(answers) > 10)
        for segments in ((FIRST, SECOND), (SECOND,), (FIRST, SECOND)):
            swaps, done = served.service.live.swaps, len(answers)
            own_lake.publish(*segments)
            until(partial(asked_since, swaps, done))
        stop.set()
        for asker in askers:
            asker.join()
        # Each answer is one version's, whole: 20, 30 or 10 samples.
        assert set(answers) == {(200, 20), (200, 30), (200, 10)}
        assert served.search(text="x", limit=60, safe=False, fold=False)["index"]["samples"] == 30
        # Nobody asks the first version any more: its files and memory maps are gone.
        gc.collect()
        until(lambda: old() is None)


def test_an_index_of_another_model_is_not_taken(own_lake: SmallLake) -> None:
    own_lake.publish(FIRST)
    with serving(own_lake.index, own_lake.model) as served:
        about = own_lake.lake.folder("knn_index", SECOND) / "index.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"model": "another/one"}))
        own_lake.publish(SECOND)
        until(lambda: served.service.live.problem is not None)
        health = served.http.get("/healthz").json()
        assert health["status"] == "degraded"
        assert "another/one" in health["index"]["problem"]
        assert health["index"]["samples"] == 20
        assert len(served.captions(text="a cat", limit=60, safe=False, fold=False)) == 20
        assert "laion_assets_search_index_problem 1.0" in served.http.get("/metrics").text


def test_what_the_subset_lost_is_never_shown(own_lake: SmallLake) -> None:
    """The segment was made again, with samples taken out, and the index is still the old one."""
    with serving(own_lake.index, own_lake.model) as served:
        before = served.results(text="a red apple", limit=60, safe=False, fold=False)
        chosen = rows()[0]
        own_lake.write(FIRST, [row for row in chosen if "red-apple" not in row.file])
        after = served.results(text="a red apple", limit=60, safe=False, fold=False)
        assert [row["caption"] for row in after] == [
            row["caption"] for row in before if "red-apple" not in row["url"]
        ]
        gone = next(row["sample"] for row in before if "red-apple" in row["url"])
        assert served.http.get(f"/thumbnails/{gone}").status_code == 404
        assert served.http.post("/search", json={"like": gone}).status_code == 404
        assert "laion_assets_search_gone_total 2.0" in served.http.get("/metrics").text


def test_ids_of_another_version_are_told_apart(own_lake: SmallLake) -> None:
    live = LiveIndex(own_lake.index, subset_beside(own_lake.index))
    first = live.current
    own_lake.publish(SECOND)
    assert live.refresh()
    assert not live.refresh()
    assert live.current.row_of(live.current.id_of(7)) == 7
    assert live.current.row_of(first.id_of(7)) is None
    assert live.current.id_of(2**32 - 1) < 2**53
