"""Damage is found wherever it is, by the file's name, and what is whole is not called damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.lake import (
    MANIFEST,
    Choice,
    Lake,
    LakeOptions,
    LocalLake,
    Partition,
    Verified,
    find_damage,
    set_aside,
)
from laion_assets.lake.base import Stored
from laion_assets.layout import SegmentKey
from tests.lake.stores import Machine

KEYS = [SegmentKey("CC-MAIN-2000-10", f"{number:02}") for number in range(5)]
ASSETS = ("pairs", "images")


def fill(lake: Lake) -> None:
    for asset in ASSETS:
        for key in KEYS:
            publish(lake, asset, key)
    with lake.publish("whole", inputs={}, code_version="1") as staging:
        (staging.path / "index.bin").write_bytes(b"index" * 999)


def publish(lake: Lake, asset: str, key: SegmentKey) -> None:
    with lake.publish(asset, key, inputs={}, code_version="1") as staging:
        pq.write_table(pa.table({"n": [*range(1000)]}), staging.path / "part-00000.parquet")
        (staging.path / "_vectors").mkdir(exist_ok=True)
        np.save(staging.path / "_vectors" / "0.npy", np.arange(1000))
        (staging.path / "empty.txt").touch()
        staging.metadata["rows"] = 1000


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    made = LocalLake.at(tmp_path / "lake")
    fill(made)
    return made


def found(lake: Lake, choice: Choice | None = None) -> dict[str, str]:
    """Problem by the path of the file in the lake."""
    damages = find_damage(lake, (choice or Choice()).partitions(lake), Verified())
    return {f"{d.partition}/{d.name}": d.problem for d in damages}


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path, to: int) -> None:
    path.write_bytes(path.read_bytes()[:to])


def edited(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def exchanged(path: Path) -> None:
    shutil.copyfile(path.parent / "_vectors" / "0.npy", path)


PARQUET, VECTORS = "part-00000.parquet", "_vectors/0.npy"

DAMAGES: list[tuple[str, Callable[[Path], object]]] = [
    (PARQUET, lambda path: flip(path, 0)),
    (PARQUET, lambda path: flip(path, 100, 7)),
    (PARQUET, lambda path: flip(path, -1)),
    (PARQUET, lambda path: cut(path, 500)),
    (PARQUET, lambda path: cut(path, 0)),
    (PARQUET, lambda path: path.unlink()),
    (PARQUET, grown),
    (PARQUET, exchanged),
    (VECTORS, lambda path: flip(path, 200)),
    (VECTORS, lambda path: cut(path, 4096)),
    (VECTORS, lambda path: path.unlink()),
    (VECTORS, lambda path: path.write_bytes(bytes(path.stat().st_size))),
    (VECTORS, folder_instead),
    ("empty.txt", grown),
    ("empty.txt", lambda path: path.unlink()),
    ("left.tmp", lambda path: path.write_text("nobody published it")),
    (MANIFEST, lambda path: cut(path, 300)),
    (MANIFEST, lambda path: edited(path, lambda value: value.pop("files"))),
    (MANIFEST, lambda path: edited(path, lambda value: value.update(data_version="0"))),
    (MANIFEST, lambda path: edited(path, lambda value: value["metadata"].update(rows=1001))),  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damage_is_found_and_named_and_nothing_else_is(lake: LocalLake, number: int) -> None:
    name, damage = DAMAGES[number]
    partition = Partition(ASSETS[number % 2], KEYS[number % 5])
    damage(lake.published(*partition) / name)
    assert list(found(lake)) == [f"{partition}/{name}"]


def test_a_sound_lake_has_none_and_all_of_it_was_read(lake: LocalLake) -> None:
    verified = Verified()
    assert not list(find_damage(lake, Choice().partitions(lake), verified))
    assert (verified.partitions, verified.files) == (11, 31)
    files = [p for p in lake.root.glob("[!.]*/**/*") if p.is_file() and p.name != MANIFEST]
    assert verified.bytes == sum(path.stat().st_size for path in files)


def test_what_a_choice_names(lake: LocalLake) -> None:
    everything = set(Choice().partitions(lake))
    assert len(everything) == 11
    shares = [Choice(share=(number, 3)).partitions(lake) for number in range(3)]
    assert sum(map(len, shares)) == 11
    assert {partition for share in shares for partition in share} == everything
    pairs = [Partition("pairs", key) for key in KEYS]
    assert Choice(["pairs"]).partitions(lake) == pairs
    assert Choice(crawl="CC-MAIN-2000-11").partitions(lake) == []
    assert Choice(share=None, also=pairs[:1]).partitions(lake) == pairs[:1]
    assert Choice(["images"], share=None, also=pairs[:1]).partitions(lake) == []
    later = datetime.now(UTC).timestamp() + 60
    assert Choice(since=later).partitions(lake) == []
    assert set(Choice(since=later - 3600).partitions(lake)) == everything


def test_a_partition_that_is_replaced_meanwhile_is_not_damaged(
    lake: LocalLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, opened = LocalLake.stored, []

    def then_replaced(self: LocalLake, asset: str, key: SegmentKey | None = None) -> Stored:
        opened.append(stored(self, asset, key))
        if len(opened) == 1:
            assert key
            publish(lake, asset, key)
            return opened[0]._replace(read=lambda _: iter([b"of the old version"]))
        return opened[-1]

    monkeypatch.setattr(LocalLake, "stored", then_replaced)
    assert not found(lake, Choice(["pairs"], share=None, also=[Partition("pairs", KEYS[0])]))


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_is_set_aside_is_kept_and_not_taken_over(lake: LocalLake, exchanges: bool) -> None:
    if not exchanges:
        lake = LocalLake(LakeOptions(root=str(lake.root)), exchange=lambda *_: False)
        publish(lake, "images", KEYS[1])
    flip(lake.published("images", KEYS[1]) / VECTORS, 300)
    damages = list(find_damage(lake, Choice().partitions(lake), Verified()))
    assert set_aside(lake, damages) == [Partition("images", KEYS[1])]
    assert not lake.has("images", KEYS[1])
    [kept] = lake.root.glob(f".damaged/**/{VECTORS}")
    assert kept.is_file()
    assert set_aside(lake, damages) == []
    publish(lake, "images", KEYS[1])
    assert not found(lake)
    # A newer version is not the one that was damaged.
    assert set_aside(lake, damages) == []
    assert lake.has("images", KEYS[1])


def test_in_a_store_it_is_the_objects_that_are_read(machine: Machine) -> None:
    lake = machine()
    fill(lake)
    other = machine()
    other.fetch("pairs", KEYS[0])
    pointer, _ = lake.index.read(f"pairs/{KEYS[0].hive}")
    flipped = bytearray((other.published("pairs", KEYS[0]) / PARQUET).read_bytes())
    flipped[200] ^= 1
    lake.store.write(pointer.files[PARQUET].object, bytes(flipped))
    pointer, _ = lake.index.read(f"images/{KEYS[2].hive}")
    lake.store.write(pointer.files[VECTORS].object, b"short")
    expected = {
        f"pairs of {KEYS[0]}/{PARQUET}": "has another SHA-256 than when it was published",
        f"images of {KEYS[2]}/{VECTORS}": "has 5 bytes, not 8,128",
    }
    assert found(other) == expected
    damaged = set_aside(other, find_damage(other, Choice().partitions(other), Verified()))
    assert damaged == [Partition("images", KEYS[2]), Partition("pairs", KEYS[0])]
    assert not found(lake)
    assert not lake.has(*damaged[0])
    for partition in damaged:
        assert partition.key
        publish(other, partition.asset, partition.key)
        assert (machine().published(*partition) / VECTORS).exists()
    assert not found(lake)
