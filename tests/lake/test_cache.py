"""This machine's copies: what may be one, how large they get, and what is never deleted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from laion_assets.lake import Lake, LakeError, LakeOptions, LocalLake, open_lake
from laion_assets.lake.remote import RemoteLake
from laion_assets.layout import SegmentKey
from tests.lake.stores import KEY, OTHER, Machine, made

KEYS = [SegmentKey("CC-MAIN-2000-05", f"{number:02}") for number in range(8)]


def on_the_same_machine(lake: RemoteLake) -> RemoteLake:
    """The lake of another process."""
    options = LakeOptions(
        root=lake.store.url,
        cache=str(lake.local_root),
        storage_options=dict(lake.store._options),
    )
    other = open_lake(options)
    assert isinstance(other, RemoteLake)
    return other


def copies(lake: Lake) -> list[str]:
    return sorted(path.parents[1].name for path in lake.local_root.glob("pairs/*/*/deep/a.txt"))


def test_the_cache_is_no_lake(machine: Machine, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    made(LocalLake.at(lake), "one")
    with pytest.raises(LakeError, match="is not empty"):
        open_lake(LakeOptions(root="s3://lake/other", cache=str(lake)))
    here = machine()
    with pytest.raises(LakeError, match=f"is the cache of {here.store.url}, not of s3://lake/y"):
        open_lake(LakeOptions(root="s3://lake/y", cache=str(here.local_root)))


def test_what_was_used_longest_ago_is_deleted(machine: Machine) -> None:
    here = machine()
    for key in KEYS[:3]:
        made(here, "x" * 100, key=key)
    on_the_same_machine(here).fetch("pairs", KEYS[0])
    here.cache.limit_bytes = 250
    here.cache.evict()
    assert copies(here) == ["segment=00", "segment=02"]
    assert (here.folder("pairs", KEYS[1]) / "deep" / "a.txt").exists(), "it is fetched again"


def test_the_cache_is_kept_small_while_it_is_read(machine: Machine) -> None:
    here, reader = machine(), machine()
    for key in KEYS:
        made(here, str(key) * 100, key=key)
    for n, key in enumerate(KEYS, 1):
        lake = on_the_same_machine(reader)
        lake.cache.limit_bytes = 4_500
        lake.fetch("pairs", key)
        assert len(copies(lake)) == min(n, 2), "three are over the limit"
        assert copies(lake)[-1] == f"segment={key.segment}"


def test_what_a_living_lake_uses_stays(machine: Machine) -> None:
    here, there = machine(), machine()
    for key in (KEY, OTHER):
        made(there, str(key), key=key)
    using = (
        "import sys; from tests.lake.test_cache import *\n"
        "lake = open_lake(LakeOptions.model_validate_json(sys.argv[1]))\n"
        "print(lake.folder('pairs', KEY), flush=True); sys.stdin.read()"
    )
    options = LakeOptions(
        root=here.store.url,
        cache=str(here.local_root),
        storage_options=dict(here.store._options),
    ).model_dump_json()
    here.cache.limit_bytes = 1
    with subprocess.Popen(
        [sys.executable, "-c", using, options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        assert other.stdout.readline().strip() == str(here.local_root / "pairs" / KEY.hive)
        here.fetch("pairs", OTHER)
        on_the_same_machine(here).cache.evict()
        here.cache.evict()
        assert copies(here) == ["segment=00", "segment=01"], "both are used, over the limit or not"
        other.kill()
    here.cache.evict()
    assert copies(here) == ["segment=01"], "a killed process uses nothing"
    last = on_the_same_machine(here)
    last.cache.limit_bytes = 1
    del here
    last.cache.evict()
    assert copies(last) == []
