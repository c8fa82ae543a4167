"""Pairs leave a downloaded segment: only their shards are written again, and nobody is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from laion_assets.defs.checks import shards_whole
from laion_assets.download.dropping import drop_rows
from laion_assets.download.joined import join
from laion_assets.download.numbering import number_pairs
from laion_assets.download.options import DownloadOptions
from laion_assets.download.rules import Rules
from laion_assets.download.shard_files import SHARDS
from laion_assets.download.shards import read_stats
from laion_assets.removals.active import Lists
from laion_assets.removals.entries import parse
from laion_assets.tables import part_path, read_parquet
from tests.download.conftest import (
    SIZE,
    Listener,
    N,
    answer,
    content,
    download,
    options_for,
    urls,
    write_pairs,
)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.parquet"
    write_pairs(path, urls())
    return path


def without(pairs: Path, *numbers: int) -> Path:
    table = read_parquet(pairs)
    pq.write_table(table.take([i for i in range(len(table)) if i not in numbers]), pairs)
    return pairs


def dropped(before: Path, pairs: Path, options: DownloadOptions) -> list[Path]:
    """Tars of the shards that only lack rows, made without the download around it."""
    out = before.parent / "dropped"
    out.mkdir()
    rules = Rules(options, Lists())
    for shard in number_pairs([pairs], SIZE, before):
        if rules.digest(shard) != getattr(read_stats(before, shard.shard), "input_digest", None):
            drop_rows(before, out, shard, rules.without_refetching(), rules.digest(shard))
    made = content(out)
    assert made == {name: of for name, of in content(before.parent / "b").items() if name in made}
    return sorted(out.glob("*.tar"))


def changed(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def test_only_the_shards_of_pairs_that_left_are_rewritten_and_nobody_is_asked(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    images.routes["/15.jpg"] = answer(b"", "500 Down")  # would be refetched by another rebuild
    options = options_for(images)
    first = download(pairs, tmp_path / "a", options)
    images.requests.clear()
    second = download(without(pairs, 1, 11), tmp_path / "b", options, before=tmp_path / "a")
    assert images.requests == []
    assert (second.asked_for, second.reused) == (0, N - 2)
    assert second.counts.kept == first.counts.kept - 2
    assert second.counts.rejects == first.counts.rejects
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    assert changed(a, b) == {"00000.tar", "00000.parquet", "00002.tar", "00002.parquet"}
    for shard, row in (("00000", 1), ("00002", 1)):
        rows = a[f"{shard}.parquet"]
        assert b[f"{shard}.parquet"] == rows[:row] + rows[row + 1 :]
        assert (tmp_path / "a" / f"{shard}.tar").stat().st_ino != (
            tmp_path / "b" / f"{shard}.tar"
        ).stat().st_ino
    assert shards_whole(tmp_path / "b").passed
    assert [path.stem for path in dropped(tmp_path / "a", pairs, options)] == ["00000", "00002"]

    # What remains is what the shards would be if they were made of their images alone.
    every = options.model_copy(update={"refetch": "all"})
    write_pairs(pairs, [*urls(), "http://h9.test/new.jpg"])
    download(without(pairs, 1, 11), tmp_path / "c", every, before=tmp_path / "a")
    assert len(images.requests) == N - 1
    assert changed(b, content(tmp_path / "c")) == {"00004.parquet"}

    # The next rebuild refetches as ever.
    images.requests.clear()
    write_pairs(pairs, urls())
    download(without(pairs, 1, 11), tmp_path / "d", options, before=tmp_path / "b")
    assert [path for _, path in images.requests] == ["/15.jpg"]


def test_a_pair_that_a_list_names_goes_likewise(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images)
    kept = download(pairs, tmp_path / "a", options).counts.kept
    images.requests.clear()
    sha256 = content(tmp_path / "a")["00003.parquet"][2]["sha256"]
    listed = {"removals": parse([urls()[1], f"sha256:{sha256}"], "list")}
    result = download(pairs, tmp_path / "b", options, before=tmp_path / "a", **listed)
    assert images.requests == []
    assert (result.counts.kept, result.counts.rejects["removed"]) == (kept - 2, 2)
    a, b = content(tmp_path / "a"), content(tmp_path / "b")
    assert {name[:5] for name in changed(a, b)} == {"00000", "00003"}
    assert b["00003.parquet"][2]["status"] == "failed_to_resize"
    assert shards_whole(tmp_path / "b").passed
    # It returns when its entry has left the list, by asking for it.
    result = download(pairs, tmp_path / "c", options, before=tmp_path / "b")
    assert result.counts.kept == kept
    assert len(images.requests) == 2


def test_of_a_published_partition_only_the_shards_of_pairs_that_left_are_rewritten(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    a, b = tmp_path / "a" / SHARDS, tmp_path / "b" / SHARDS
    options = options_for(images)
    download(pairs, a, options)
    join(a)
    before = read_parquet(part_path(a.parent, 0))
    images.requests.clear()
    download(without(pairs, 1), b, options, before=a)
    join(b)
    assert images.requests == []
    assert read_parquet(part_path(b.parent, 0)).equals(before.take([i for i in range(N) if i != 1]))
    tars = {path.name: path.stat().st_ino for path in a.glob("*.tar")}
    assert {path.name for path in b.glob("*.tar") if path.stat().st_ino != tars[path.name]} == {
        "00000.tar"
    }


def test_an_image_that_the_tar_has_lost_is_fetched(
    images: Listener, pairs: Path, tmp_path: Path
) -> None:
    options = options_for(images)
    first = download(pairs, tmp_path / "a", options)
    tar = tmp_path / "a" / "00000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[damaged.index(b"000000002.jpg")] = ord("x")
    tar.write_bytes(damaged)
    images.requests.clear()
    result = download(without(pairs, 1), tmp_path / "b", options, before=tmp_path / "a")
    assert result.counts.kept == first.counts.kept - 1
    assert "/2.jpg" in [path for _, path in images.requests]
    assert shards_whole(tmp_path / "b").passed
