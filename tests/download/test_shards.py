"""A shard's files, moved, linked and read back."""

from __future__ import annotations

import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from laion_assets.defs.checks import shards_whole
from laion_assets.download.digests import rows_digest
from laion_assets.download.shard_files import files_of, read_ledger, read_shard
from laion_assets.download.shards import (
    digests_read_back,
    put_aside,
    read_stats,
    take_over,
    was_whole,
)
from laion_assets.files import sha256_file
from tests.download.conftest import Listener, content, download, options_for, urls, write_pairs


def test_a_shard_that_was_taken_over_can_be_put_aside(images: Listener, tmp_path: Path) -> None:
    """A kill leaves both names on one file, and then a rename does nothing."""
    pairs, out, aside = tmp_path / "pairs.parquet", tmp_path / "out", tmp_path / "aside"
    write_pairs(pairs, urls(3))
    download(pairs, tmp_path / "before", options_for(images))
    stats = read_stats(tmp_path / "before", 0)
    assert stats is not None
    out.mkdir()
    tar = files_of(tmp_path / "before", 0)[0]
    taken = take_over(tar, read_shard(tar), read_ledger(tar), out, stats)
    assert content(out) == content(tmp_path / "before")
    assert read_stats(out, 0) == taken
    assert (taken.reused, taken.asked_for, taken.bytes) == (3, 0, 0)
    assert replace(taken, reused=0, asked_for=3, bytes=stats.bytes) == stats
    (aside / "_ledger").mkdir(parents=True)
    for path, target in zip(files_of(out, 0), files_of(aside, 0), strict=True):
        os.link(path, target)
    put_aside(out, 0, aside)
    assert not any(path.exists() for path in files_of(out, 0))
    assert read_stats(aside, 0) == taken


def test_a_tar_is_read_back_by_its_writer_and_trusted_as_long_as_it_is_that_file(
    images: Listener, tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs.parquet", tmp_path / "out"
    write_pairs(pairs, urls(6))
    download(pairs, out, options_for(images))
    stats, tar = read_stats(out, 0), files_of(out, 0)[0]
    assert stats is not None
    table = pq.read_table(pairs).slice(0, 5)
    assert stats.input_digest == rows_digest(table, range(5), stats.options_digest)
    assert digests_read_back(out) == {path: sha256_file(path) for path in sorted(out.glob("*.tar"))}
    rows = read_shard(tar).to_pylist()
    stored = {row["key"]: row["caption"] for row in rows if row["status"] == "success"}
    assert len(stored) == 4  # one of the five is gone
    assert was_whole(tar, stored)
    other = {f"9{key[1:]}": caption for key, caption in stored.items()}
    for others in (other, {**stored, "000000009": "more"}, dict.fromkeys(stored)):
        assert not was_whole(tar, others)
    assert shards_whole(out).passed
    copied = tmp_path / "copied"
    shutil.copytree(out, copied)
    assert digests_read_back(copied) == {}
    assert shards_whole(copied).passed
    _leave_out(files_of(copied, 0)[0], "000000001.txt")
    assert shards_whole(copied).problem == "00000: 000000001 and 0 more are incomplete"


def _leave_out(tar: Path, name: str) -> None:
    with tarfile.open(tar) as old, tarfile.open(tar.with_suffix(".new"), "w") as new:
        for member in old:
            if member.name != name:
                new.addfile(member, old.extractfile(member))
    tar.with_suffix(".new").replace(tar)
