"""A whole list at once: remote files of the same names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_assets.pairs.rules import PairRules
from laion_assets.url_lists.options import ReadOptions
from laion_assets.url_lists.url_list import pairs_of_list
from tests.conftest import FolderServer


def test_remote_files_of_the_same_name_are_copied_beside_the_result(
    tmp_path: Path,
    serve_folder: Callable[[Path], FolderServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = tmp_path / "served"
    names = ["x/b.csv", "y/b.csv", "x_b.csv"]
    for number, name in enumerate(names):
        path = served / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"url,text\nhttps://a.example/{number}.jpg,a photo of house {number}\n")
    # Where there is one, the folder for temporary files is on another file system.
    for place in map(Path, ("/dev/shm", "/var/tmp")):
        if os.access(place, os.W_OK) and place.stat().st_dev != tmp_path.stat().st_dev:
            monkeypatch.setattr("tempfile.tempdir", str(place))
    url, out = serve_folder(served).url, tmp_path / "pairs.parquet"
    places = [f"{url}/{name}" for name in names]
    made = pairs_of_list(places, out, PairRules(languages=()), ReadOptions(), workers=1)
    assert made.files == 3
    rows = pq.ParquetFile(out).read(["wat_file", "text"]).to_pylist()
    assert {row["text"]: row["wat_file"] for row in rows} == {
        "a photo of house 0": "b.csv",
        "a photo of house 1": "1/b.csv",
        "a photo of house 2": "x_b.csv",
    }
