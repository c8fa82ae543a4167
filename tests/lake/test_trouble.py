"""What a store, a stranger or chance may do to a lake in an object store, and what then happens."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from laion_assets.lake import CarelessStoreError, DamagedError, Lake, PartitionBusyError
from laion_assets.lake.pointer import checkpoint_path, pointer_path
from laion_assets.layout import place_of
from laion_assets.removals.active import FOLDERS, read_lists
from tests.conftest import heard
from tests.lake.stores import KEY, OTHER, Between, Machine, made
from tests.processes import PATIENCE_S

PLACE = place_of("pairs", KEY)


def in_a_thread(lake: Lake) -> tuple[threading.Thread, list[PartitionBusyError]]:
    """Publish in a thread; return it, and the list that gets the error."""
    errors: list[PartitionBusyError] = []

    def publish() -> None:
        try:
            made(lake, "one")
        except PartitionBusyError as error:
            errors.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    return thread, errors


def test_a_lost_answer_and_a_fence_delete_nothing(
    machine: Machine, proxied: Machine, proxy: Between
) -> None:
    slow, other = proxied(), machine()
    proxy.lost = pointer_path(PLACE)
    publishing, errors = in_a_thread(slow)
    assert proxy.done.wait(PATIENCE_S)
    assert other.has("pairs", KEY), "the pointer is written, its writer does not know"
    other._fence("pairs", KEY)
    proxy.go.set()
    publishing.join()
    for lake in (machine(), slow):
        assert (lake.folder("pairs", KEY) / "deep" / "a.txt").read_text() == "one"
    assert not errors


def test_a_lost_answer_and_a_newer_publication_keep_what_that_names(
    machine: Machine, proxied: Machine, proxy: Between
) -> None:
    slow, other = proxied(), machine()
    proxy.lost = pointer_path(PLACE)
    publishing, errors = in_a_thread(slow)
    assert proxy.done.wait(PATIENCE_S)
    made(other, "two")
    proxy.go.set()
    publishing.join()
    assert len(errors) == 1
    folder = machine().folder("pairs", KEY)
    assert (folder / "deep" / "a.txt").read_text() == "two"
    assert (folder / "same.txt").read_text() == "same", "the object is the first publication's"


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_store_that_ignores_conditions_is_refused(
    machine: Machine, proxied: Machine, proxy: Between, header: str
) -> None:
    proxy.kept_back.add(header.lower())
    careless = proxied()
    with pytest.raises(CarelessStoreError, match=f"ignores {header}"):
        made(careless, "one")
    with pytest.raises(CarelessStoreError, match=f"ignores {header}"):
        careless.update("removals/mine.txt", lambda _: None)
    assert not careless.has("pairs", KEY), "reading needs no conditions"
    assert not machine().store.listed("_probe")


def test_a_store_is_tried_once_by_a_machine(proxied: Machine, proxy: Between) -> None:
    here = proxied()

    def tried() -> int:
        made(here, "one")
        return sum("/_probe/" in asked for asked in proxy.requests)

    n = tried()
    assert 0 < n < 10
    assert tried() == n


def broken(lake: Any, path: str, **changes: object) -> None:
    """Change fields of a JSON object in the store."""
    content, version = lake.store.read(path)
    lake.store.write_if(path, json.dumps(json.loads(content) | changes).encode(), version)


@pytest.mark.parametrize(
    "name", ["../../../outside.txt", "/etc/outside.txt", "a/../../b.txt", ".store/x", "", "a//b"]
)
def test_names_that_lead_elsewhere_are_refused(machine: Machine, tmp_path: Path, name: str) -> None:
    here, there = machine(), machine()
    made(here, "one")
    file = {"object": f"{PLACE}/x", "bytes": 1, "sha256": "0" * 64}
    here.store.write(f"{PLACE}/x", b"x")
    broken(here, pointer_path(PLACE), files={name: file})
    for read in (there.fetch, there.manifest, there.folder):
        with pytest.raises(DamagedError, match=f"{pointer_path(PLACE)} is damaged: files"):
            read("pairs", KEY)
    with pytest.raises(DamagedError, match=f"{pointer_path(PLACE)} is damaged"):
        there.manifests("pairs")
    here.store.write(
        checkpoint_path(place_of("pairs", OTHER)),
        json.dumps({"fingerprint": "x", "files": {name: file}}).encode(),
    )
    said: list[str] = []
    with heard(said.append):
        made(there, "two", key=OTHER)
    assert any("cannot be taken over" in line for line in said)
    assert not list(tmp_path.rglob("*outside*"))


def test_a_pointer_names_no_objects_of_others(machine: Machine) -> None:
    here = machine()
    made(here, "one")
    here.store.write("removals/mine.txt", b"host:bad.test\n")
    file = {"object": "removals/mine.txt", "bytes": 14, "sha256": "0" * 64}
    broken(here, pointer_path(PLACE), files={"a.txt": file})
    with pytest.raises(DamagedError, match=r"names removals/mine.txt, outside of pairs/crawl"):
        made(here, "two")
    assert here.store.read("removals/mine.txt")


@pytest.mark.parametrize(
    "content", [b"", b"{}}", b"[]", b'{"files": 1}', b'{"id": "1", "manifest": {"asset": "a"}}']
)
def test_damaged_pointers_are_errors_that_name_the_object(machine: Machine, content: bytes) -> None:
    here, there = machine(), machine()
    made(here, "one")
    address = f"{here.store.url}/{pointer_path(PLACE)}"
    here.store.write(pointer_path(PLACE), content)
    for call in (here.fetch, here.manifest, there.folder):
        with pytest.raises(DamagedError, match=re.escape(f"{address} is damaged")):
            call("pairs", KEY)
    with pytest.raises(DamagedError, match=re.escape(f"{address} is damaged")):
        made(there, "two")
    here.store.delete([pointer_path(PLACE)])
    made(there, "two")
    assert here.has("pairs", KEY), "deleting the pointer is the way out"


def test_objects_that_are_gone_are_named_with_their_pointer(machine: Machine) -> None:
    here, there = machine(), machine()
    made(here, "one")
    with here.publish("many", KEY, inputs={}, code_version="1") as staging:
        for number in range(40):
            (staging.path / f"{number}.txt").write_text(str(number))
    for asset, end in (("pairs", "same.txt"), ("many", ".json")):
        gone = [item.path for item in here.store.listed(asset) if item.path.endswith(end)]
        assert len(gone) == 1
        here.store.delete(gone)
        named = f"{pointer_path(place_of(asset, KEY))} is damaged: .*{gone[0]} does not exist"
        with pytest.raises(DamagedError, match=named):
            there.fetch(asset, KEY)


def test_lists_out_of_sight_for_a_moment_are_in_force(proxied: Machine, proxy: Between) -> None:
    here = proxied()
    here.store.write("removals/mine.txt", b"host:bad.test\n")
    here.store.write("removals/yours.txt", b"host:worse.test\n")
    assert len(read_lists(here.current(*FOLDERS)).removals) == 2
    proxy.hidden = "removals"
    here.store.delete(["removals/yours.txt"])
    assert len(read_lists(here.current(*FOLDERS)).removals) == 1
    proxy.hidden = ""
    assert len(read_lists(here.current(*FOLDERS)).removals) == 1
