"""Only files that are as they were published are handed to what is made of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from laion_assets.files import sha256_file
from laion_assets.lake import DamagedFilesError, Lake, LocalLake, NotPublishedError, link_others
from laion_assets.lake.checkpoint import Checkpoint
from laion_assets.lake.partition import Manifest
from laion_assets.layout import SegmentKey, place_of
from tests.lake.stores import Machine
from tests.processes import until

KEY = SegmentKey("CC-MAIN-2000-10", "00")
FILES = {"part-00000.parquet": b"rows", "_shards/0.tar": b"tar" * 99, "_shards/1.tar": b"other"}


def publish(lake: Lake) -> None:
    with lake.publish("images", KEY, inputs={}, code_version="1") as staging:
        for name, content in FILES.items():
            (staging.path / name).parent.mkdir(exist_ok=True)
            (staging.path / name).write_bytes(content)


def test_damage_has_its_file_s_name_and_stops_what_would_be_made_of_it(tmp_path: Path) -> None:
    lake = LocalLake.at(tmp_path)
    with pytest.raises(NotPublishedError):
        lake.damaged("images", KEY)
    publish(lake)
    folder = lake.whole("images", KEY)
    assert lake.damaged("images", KEY) == {}
    (folder / "_shards/0.tar").write_bytes(b"tar" * 98 + b"tAr")
    (folder / "part-00000.parquet").unlink()
    damaged = {
        "_shards/0.tar": "has another SHA-256 than when it was published",
        "part-00000.parquet": "is missing",
    }
    assert lake.damaged("images", KEY) == damaged
    assert list(lake.damaged("images", KEY, "*.tar")) == ["_shards/0.tar"]
    assert list(lake.damaged("images", KEY, but=["*.tar"])) == ["part-00000.parquet"]
    with pytest.raises(DamagedFilesError, match=r"0\.tar has another .* 1 more .* materialize"):
        lake.whole("images", KEY)
    assert lake.whole("images", KEY, but=["*.tar", "*.parquet"]) == folder
    link_others(folder, Manifest.read(folder), damaged, tmp_path / "others")
    assert [path.name for path in (tmp_path / "others").rglob("*.*")] == ["1.tar"]
    assert (tmp_path / "others/_shards/1.tar").samefile(folder / "_shards/1.tar")


def test_what_this_process_has_just_read_is_not_read_again(tmp_path: Path) -> None:
    lake = LocalLake.at(tmp_path)
    publish(lake)
    path = lake.folder("images", KEY) / "_shards/1.tar"

    def change(content: bytes, at: float) -> None:
        path.write_bytes(content)
        os.utime(path, (at, at))

    lately, before = time.time(), time.time() - 60
    change(b"other", lately)
    assert lake.damaged("images", KEY) == {}
    change(b"OTHER", lately)
    assert list(lake.damaged("images", KEY)) == ["_shards/1.tar"], "the time may hide a change"
    change(b"other", before)
    assert lake.damaged("images", KEY) == {}
    change(b"OTHER", before)
    assert lake.damaged("images", KEY) == {}
    change(b"OTHER", before + 1)
    assert list(lake.damaged("images", KEY)) == ["_shards/1.tar"]


def test_a_partition_that_is_replaced_meanwhile_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, read = LocalLake.at(tmp_path), Manifest.read
    publish(lake)
    (lake.folder("images", KEY) / "part-00000.parquet").write_bytes(b"torn")
    calls: list[Path] = []

    def replaced(folder: Path) -> Manifest:
        calls.append(folder)
        found = read(folder)
        if len(calls) == 1:
            publish(lake)
            (folder / "_shards/0.tar").write_bytes(b"torn")
        return found

    monkeypatch.setattr(Manifest, "read", replaced)
    assert list(lake.damaged("images", KEY)) == ["_shards/0.tar"]


def test_a_copy_of_an_object_is_copied_again_and_a_damaged_object_is_damage(
    machine: Machine,
) -> None:
    here = machine()
    publish(here)
    folder = here.folder("images", KEY)
    (folder / "_shards/0.tar").write_bytes(b"torn")
    assert here.damaged("images", KEY) == {}
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES

    stored = {item.path.rpartition("/")[2]: item.path for item in here.store.listed("images")}
    here.store.write(stored["1.tar"], b"OTHER")
    for lake in (here, machine()):  # one that has a copy, and one that has not
        folder = lake.local_root / "images" / KEY.hive
        (folder / "_shards/1.tar").unlink(missing_ok=True)
        found = lake.damaged("images", KEY)
        assert list(found) == ["_shards/1.tar"]
        assert "is damaged" in found["_shards/1.tar"]
        assert sha256_file(folder / "_shards/0.tar")
        with pytest.raises(DamagedFilesError):
            lake.whole("images", KEY)


@pytest.mark.parametrize("has_copies", [False, True])
def test_a_damaged_object_is_replaced_though_its_file_is_made_again_as_it_was(
    machine: Machine, has_copies: bool
) -> None:
    here = machine()
    publish(here)
    stored = {item.path.rpartition("/")[2]: item for item in here.store.listed("images")}
    # A store's clock has seconds.
    time.sleep(max(0, stored["1.tar"].modified.timestamp() + 1.01 - time.time()))
    here.store.write(stored["1.tar"].path, b"OTHER")
    maker = here if has_copies else machine()
    assert list(maker.damaged("images", KEY)) == ([] if has_copies else ["_shards/1.tar"])
    publish(maker)
    assert machine().damaged("images", KEY) == {}
    now = {item.path for item in here.store.listed("images")}
    assert {stored["0.tar"].path, stored["part-00000.parquet"].path} <= now
    assert stored["1.tar"].path not in now


def test_an_object_that_is_found_damaged_is_named_no_more(machine: Machine) -> None:
    here = machine()
    publish(here)
    stored = {item.path.rpartition("/")[2]: item.path for item in here.store.listed("images")}
    maker = machine()
    with maker.publish("images", KEY, inputs={}, code_version="1") as staging:
        (staging.path / "1.tar").write_bytes(FILES["_shards/1.tar"])
        # A checkpoint has named the object before it is found damaged.
        until(lambda: Checkpoint.read(maker.store, place_of("images", KEY)) is not None)
        maker.store.write(stored["1.tar"], b"OTHER")
        assert list(maker.damaged("images", KEY)) == ["_shards/1.tar"]
    assert machine().damaged("images", KEY) == {}


def test_only_what_is_compared_is_copied(machine: Machine) -> None:
    publish(machine())
    there = machine()
    folder = there.whole("images", KEY, but=["*.tar"])
    assert {path.name for path in folder.rglob("*.*")} == {"_manifest.json", "part-00000.parquet"}
