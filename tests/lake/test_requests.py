"""What a lake in an object store asks the store for, counted by a proxy before it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from laion_assets.lake import Manifest
from laion_assets.lake.checkpoint import Checkpoint
from laion_assets.lake.pointer import Pointer, StoredFile, parse_pointer, pointer_path
from laion_assets.lake.remote import RemoteLake
from laion_assets.layout import SegmentKey, place_of
from tests.lake.stores import KEY, OTHER, Between, Machine, made
from tests.processes import until

FILES = {f"{number:03}.txt": f"content {number}" for number in range(100)}


def written(lake: RemoteLake, files: Mapping[str, str], code: str = "1") -> Manifest:
    lake._checkpoint_s = 600
    with lake.publish("images", KEY, inputs={}, code_version=code) as staging:
        for name, content in files.items():
            (staging.path / name).write_text(content)
    return staging.published


def test_a_publish_takes_requests_for_what_has_changed(proxied: Machine, proxy: Between) -> None:
    here, there = proxied(), proxied()
    made(here, "the store is tried", key=OTHER)
    assert proxy.count(lambda: written(here, FILES)) == 106
    assert proxy.count(lambda: written(here, FILES)) <= 8
    changed = FILES | {"007.txt": "other"}
    assert proxy.count(lambda: written(here, changed)) <= 10
    del changed["008.txt"]
    last = written(here, changed)
    folder = there.folder("images", KEY)
    assert {path.name: path.read_text() for path in folder.glob("*.txt")} == changed
    assert there.manifest("images", KEY) == last
    left = [item.path for item in here.store.listed("images")]
    assert len(left) == 99 + 1, "the files and their list: what nothing names is gone"
    assert proxy.count(lambda: there.fetch("images", KEY)) == 1


def test_the_index_costs_a_listing(proxied: Machine, proxy: Between) -> None:
    here, there = proxied(), proxied()
    keys = [SegmentKey("CC-MAIN-2000-05", f"{number:02}") for number in range(12)]
    manifests = {key: made(here, str(key), key=key) for key in keys[:10]}
    here._fence("pairs", keys[10])
    assert proxy.count(lambda: there.versions("pairs")) == 2, "the empty pointer is read"
    assert proxy.count(lambda: there.versions("pairs")) == 1
    versions = there.versions("pairs")
    assert sorted(versions, key=str) == there.segments("pairs") == keys[:10]
    assert proxy.count(lambda: there.manifests("pairs")) == 11
    assert proxy.count(lambda: there.manifests("pairs")) == 1
    assert there.manifests("pairs") == manifests
    manifests[keys[3]] = made(here, "new", key=keys[3])
    assert proxy.count(lambda: there.manifests("pairs")) == 2
    assert there.manifests("pairs") == manifests
    assert there.manifests("pairs", keys[2:4]) == {key: manifests[key] for key in keys[2:4]}
    assert proxy.count(lambda: there.versions("pairs", keys[2:4])) == 2
    assert there.versions("pairs", [keys[2], keys[11]]) == {keys[2]: versions[keys[2]]}
    now = there.versions("pairs")
    assert [key for key in keys[:10] if now[key] != versions[key]] == [keys[3]]
    assert proxy.count(lambda: there.fetch_all("pairs", "same*")) == 11
    assert proxy.count(lambda: there.fetch_all("pairs", "same*")) == 1
    assert (there.local_root / "pairs" / keys[9].hive / "same.txt").exists()
    assert there.manifests("nothing") == there.versions("nothing") == {}


def test_many_files_are_listed_apart_and_read_once(proxied: Machine, proxy: Between) -> None:
    here, there = proxied(), proxied()
    manifest = written(here, FILES)
    got = here.store.read(pointer_path(place_of("images", KEY)))
    assert got
    assert len(got[0]) < 2_000
    assert proxy.count(lambda: there.manifest("images", KEY)) == 2
    assert proxy.count(lambda: there.manifest("images", KEY)) == 1
    assert there.manifest("images", KEY) == manifest
    here._fence("images", KEY)
    assert proxy.count(lambda: there.manifests("images")) == 2, "a fence leaves the list as it is"
    assert there.manifests("images") == {KEY: manifest}


def test_what_a_checkpoint_has_is_not_uploaded_again(proxied: Machine, proxy: Between) -> None:
    lost = proxied()

    def has_all() -> bool:
        checkpoint = Checkpoint.read(lost.store, place_of("images", KEY))
        return checkpoint is not None and len(checkpoint.files) == len(FILES)

    def begin() -> None:
        with (
            pytest.raises(ZeroDivisionError),
            lost.publish("images", KEY, inputs={}, code_version="1") as staging,
        ):
            for name, content in FILES.items():
                (staging.path / name).write_text(content)
            until(has_all)
            raise ZeroDivisionError

    def uploads_to_finish() -> int:
        other, before = proxied(), len(proxy.requests)
        with other.publish("images", KEY, inputs={}, code_version="1") as staging:
            assert staging.resumed
        folder = proxied().folder("images", KEY)
        assert {path.name: path.read_text() for path in folder.glob("*.txt")} == FILES
        return sum(
            asked.startswith("PUT") and asked.endswith(".txt") for asked in proxy.requests[before:]
        )

    begin()
    assert uploads_to_finish() == 0
    lost.store.delete([pointer_path(place_of("images", KEY))])
    begin()
    lost._fence("images", KEY)
    # Its maker, should it live, may now delete what it has uploaded.
    assert uploads_to_finish() == len(FILES)


def test_pointers_of_earlier_versions_are_read(machine: Machine) -> None:
    here, there = machine(), machine()
    manifest = made(here, "one")
    path = pointer_path(place_of("pairs", KEY))
    pointer, version = here.index.read(place_of("pairs", KEY))
    old = json.loads(pointer.to_bytes()) | {"manifest": manifest.to_json()}
    del old["files_at"]
    assert "files" in old["manifest"]
    here.store.write_if(path, json.dumps(old, sort_keys=True).encode(), version)
    assert there.manifest("pairs", KEY) == manifest
    assert there.manifests("pairs") == {KEY: manifest}
    assert Manifest.read(there.folder("pairs", KEY)) == manifest
    made(there, "two")
    assert len(there.store.listed("pairs")) == 2


def test_a_pointer_keeps_what_a_manifest_says(machine: Machine) -> None:
    first = made(machine(), "one")
    files = [{**item, "rows": 3, "columns": "a b"} for item in first.files]
    manifest = replace(first, files=files)
    stored = {item["name"]: StoredFile("pairs/x", item["bytes"], item["sha256"]) for item in files}
    content = Pointer("1", stored).with_manifest(manifest).to_bytes()
    assert parse_pointer(content, "pairs", "").record() == manifest.to_json()
    empty = Pointer().to_bytes()
    assert len(empty) < 256, "a listing tells an empty pointer by its size"
