"""A shard's files, moved and linked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from laion_assets.download.shard_files import files_of, read_ledger, read_shard
from laion_assets.download.shards import put_aside, read_stats, take_over
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
