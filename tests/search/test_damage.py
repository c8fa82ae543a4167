"""Damaged files: the request gets a 503, `/healthz` the file's name, and the service goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from laion_assets.clip.vectors import image_path, text_path
from laion_assets.tables import part_path
from tests.processes import until
from tests.search.conftest import FIRST, SECOND, SmallLake, serving


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    "damaged",
    [
        lambda folder: part_path(folder, 0),
        lambda folder: image_path(folder, 0),
        lambda folder: text_path(folder, 0),
    ],
    ids=["parquet", "image vectors", "text vectors"],
)
def test_a_cut_file_of_a_subset_is_503_and_named(
    own_lake: SmallLake, damaged: Callable[[Path], Path]
) -> None:
    path = damaged(own_lake.lake.folder("filtered_subset", FIRST))
    cut(path)
    with serving(own_lake.index, own_lake.model) as served:
        over = "text" if path == text_path(path.parents[1], 0) else "image"
        answer = served.http.post("/search", json={"text": "a red apple", "over": over})
        assert (answer.status_code, answer.json()["reason"]) == (503, "damaged")
        assert "parquet" not in answer.text.lower()
        health = served.http.get("/healthz").json()
        assert health["status"] == "degraded"
        [named] = health["index"]["damaged"]
        assert named.startswith(str(path.relative_to(own_lake.root)))


def test_a_mapped_file_that_is_cut_does_not_end_the_process(own_lake: SmallLake) -> None:
    own_lake.publish(FIRST)
    with serving(own_lake.index, own_lake.model) as served:
        assert served.results(text="a red apple")
        for name in ("image.index", "ids.npy"):
            [path] = own_lake.index.rglob(name)
            os.truncate(path, 0)
            answer = served.http.post("/search", json={"text": "a red apple"})
            assert answer.status_code == 503
        named = served.http.get("/healthz").json()["index"]["damaged"]
        assert any("image.index was cut from" in problem for problem in named)
        # Another index is whole, and in use without a restart.
        own_lake.publish(SECOND)
        until(lambda: served.http.post("/search", json={"text": "a red apple"}).status_code == 200)


@pytest.mark.parametrize("name", ["image.index", "text.index", "ids.npy"])
def test_a_flipped_byte_of_an_index_is_noticed(own_lake: SmallLake, name: str) -> None:
    own_lake.publish(FIRST)
    [path] = own_lake.index.rglob(name)
    flip(path)
    with serving(own_lake.index, own_lake.model) as served:

        def named() -> list[str]:
            return served.http.get("/healthz").json()["index"]["damaged"]

        until(named)
        assert named() == [str(path.relative_to(own_lake.index))]
