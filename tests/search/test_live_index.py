"""A newer index replaces the older one while requests are in progress."""

from __future__ import annotations

import base64
import gc
import io
import json
import tarfile
import threading
import weakref
from functools import partial
from itertools import pairwise

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from laion_assets.clip.vectors import image_path
from laion_assets.download.shard_files import tar_path
from laion_assets.knn.query import subset_beside
from laion_assets.knn.samples import SampleRef
from laion_assets.search.live_index import LiveIndex
from laion_assets.tables import part_path, write_table
from tests.processes import PATIENCE_S, until
from tests.search.conftest import FIRST, SECOND, SmallLake, rows, serving


def test_a_new_index_is_loaded_without_dropping_a_request(own_lake: SmallLake) -> None:
    own_lake.publish(FIRST)
    vector = own_lake.model.encode_texts(["a slice of pizza"])[0].tolist()
    answers: list[tuple[int, int]] = []
    stop = threading.Event()

    with serving(own_lake.index, own_lake.model) as served:

        def ask() -> None:
            with httpx.Client(base_url=served.url, timeout=PATIENCE_S) as http:
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
        # Nobody uses the first version any more: its files and memory maps are gone.
        gc.collect()
        until(lambda: old() is None)


def test_an_index_of_another_model_is_not_loaded(own_lake: SmallLake) -> None:
    own_lake.publish(FIRST)
    with serving(own_lake.index, own_lake.model) as served:
        about = own_lake.lake.folder("knn_index", SECOND) / "index.json"
        about.write_text(
            json.dumps(
                json.loads(about.read_text()) | {"model": "another/one", "model_version": "2"}
            )
        )
        own_lake.publish(SECOND)
        until(lambda: served.service.live.problem is not None)
        health = served.http.get("/healthz").json()
        assert health["status"] == "degraded"
        assert "another/one" in health["index"]["problem"]
        assert health["index"]["samples"] == 20
        assert len(served.captions(text="a cat", limit=60, safe=False, fold=False)) == 20
        assert "laion_assets_search_index_problem 1.0" in served.http.get("/metrics").text


def test_an_index_of_another_model_answers_only_what_needs_no_model(own_lake: SmallLake) -> None:
    """As when the weights were changed, and the index was not yet: under the same name."""
    _publish_made_by(own_lake, model_version="2")
    with serving(own_lake.index, own_lake.model) as served:
        until(lambda: served.http.get("/healthz").json()["encoder"]["state"] == "ready")
        problem = served.http.get("/healthz").json()["index"]["problem"]
        assert "(version 2), the service uses laion-assets-tiny" in problem
        for query in ({"text": "a cat"}, {"image": picture(), "limit": 3}):
            answer = served.http.post("/search", json=query)
            assert (answer.status_code, answer.json()["reason"]) == (503, "other_model")
        like = first_sample(own_lake)
        assert served.results(like=like, fold=False, safe=False)[0]["sample"] == like

        # A fitting index, by whatever name its model went, is taken.
        _publish_made_by(own_lake, model="local-dir:/moved", model_version=own_lake.model.version)
        until(lambda: served.http.get("/healthz").json()["status"] == "ok")
        assert served.captions(text="a cat", safe=False)


def _publish_made_by(lake: SmallLake, **model: str) -> None:
    """Publish an index whose vectors are said to be of a model."""
    about = lake.lake.folder("knn_index", FIRST) / "index.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | model))
    lake.publish(FIRST)


def picture() -> str:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def first_sample(lake: SmallLake) -> str:
    part = lake.lake.folder("filtered_subset", FIRST) / "part-00000.parquet"
    row = pq.ParquetFile(part).read(["key", "SAMPLE_ID"]).slice(0, 1).to_pylist()[0]
    return str(SampleRef(FIRST.crawl, FIRST.segment, row["key"], row["SAMPLE_ID"]))


def test_what_the_subset_lost_is_never_shown(own_lake: SmallLake) -> None:
    """The segment was rebuilt without some samples, and the index is still the old one."""
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


def test_shards_newer_than_the_subset_show_no_other_samples_picture(own_lake: SmallLake) -> None:
    """The shard was rebuilt without its first image, so each key now names another image."""
    shard = own_lake.lake.folder("image_shards", FIRST)
    with serving(own_lake.index, own_lake.model) as served:
        results = served.results(text="a red apple", limit=60, safe=False, fold=False)
        of_first = [row for row in results if row["segment"] == FIRST.segment]
        refs = [row["sample"] for row in of_first if row["crawl"] == FIRST.crawl]
        before = {ref: served.http.get(f"/thumbnails/{ref}").content for ref in refs}

        part, old = part_path(shard, 0), tar_path(shard, 0)
        kept = pq.ParquetFile(part).read().to_pylist()
        with tarfile.open(old) as tar:
            bodies = [member_bytes(tar, f"{row['key']}.jpg") for row in kept]
        with tarfile.open(shard / "new.tar", "w") as tar:
            for row, body in zip(kept[:-1], bodies[1:], strict=True):
                member = tarfile.TarInfo(f"{row['key']}.jpg")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        moved = [{**row, "sha256": after["sha256"]} for row, after in pairwise(kept)]
        write_table(part, pa.Table.from_pylist(moved))
        (shard / "new.tar").rename(old)

        after = {ref: served.http.get(f"/thumbnails/{ref}") for ref in refs}
        gone = [ref for ref, answer in after.items() if answer.status_code == 404]
        assert len(gone) == 1
        assert before[gone[0]] == bodies[0]
        assert all(after[ref].content == before[ref] for ref in refs if ref not in gone)


def member_bytes(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    assert member
    return member.read()


def test_a_subset_that_is_not_whole_is_not_the_clients_fault(own_lake: SmallLake) -> None:
    with serving(own_lake.index, own_lake.model) as served:
        vectors = image_path(own_lake.lake.folder("filtered_subset", FIRST), 0)
        np.save(vectors, np.load(vectors)[:-1])
        answer = served.http.post("/search", json={"text": "a red apple"})
        assert (answer.status_code, answer.json()["reason"]) == (503, "damaged")
        assert str(own_lake.root) not in answer.text


def test_the_same_segments_indexed_in_another_way_are_another_version(
    own_lake: SmallLake,
) -> None:
    own_lake.publish(FIRST, SECOND)
    live = LiveIndex(own_lake.index, subset_beside(own_lake.index))
    first = live.current
    own_lake.publish(SECOND, FIRST)
    assert live.refresh() == (live.current.summary.runs != first.summary.runs)
    about = own_lake.index / "index.json"
    about.write_text(about.read_text().replace('"n":', '"n" :'))
    (own_lake.index / "_manifest.json").touch()
    assert live.refresh()
    assert live.current.row_of(first.id_of(7)) is None


def test_ids_of_another_version_are_recognised(own_lake: SmallLake) -> None:
    live = LiveIndex(own_lake.index, subset_beside(own_lake.index))
    first = live.current
    own_lake.publish(SECOND)
    assert live.refresh()
    assert not live.refresh()
    assert live.current.row_of(live.current.id_of(7)) == 7
    assert live.current.row_of(first.id_of(7)) is None
    assert live.current.id_of(2**32 - 1) < 2**53
