from __future__ import annotations

import io
import itertools
import os
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.generation.pairs import (
    BatchOrder,
    Images,
    LostImageError,
    NoPairsError,
    OtherImageError,
    Pairs,
    Shard,
    captions_of,
    find_shards,
    shrunk,
    with_other_captions,
)
from laion_assets.tables import part_path

from .conftest import MakeShards

HELD_OUT = [f"caption {number}" for number in range(20)]
"""Captions of which some are held out and some are not."""


def shard_of(folder: Path, captions: list[str]) -> Shard:
    """Write a shard of pairs without images."""
    rows = [{"key": f"{row:09d}", "TEXT": caption} for row, caption in enumerate(captions)]
    part = part_path(folder, 0)
    pq.write_table(pa.Table.from_pylist(rows), part)
    return Shard(part, folder / "00000.tar", 0, len(rows))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, make_shards: MakeShards) -> list[Shard]:
    return make_shards(tmp_path_factory.mktemp("shards"), 3, 12)


def test_only_what_the_subset_kept_is_read(shards: list[Shard]) -> None:
    pairs = Pairs(shards, 0.3, 0)
    assert len(pairs) == 3 * 8
    with Images(pairs, 16, 2) as images:
        for number in range(len(pairs)):
            shard, row = pairs.place(number)
            with tarfile.open(shards[shard].tar) as archive:
                stored = archive.extractfile(f"{shards[shard].keys()[row]}.jpg")
                assert stored
                assert images.encoded(number) == stored.read()
    assert find_shards(shards[0].part.parent, shards[0].tar.parent) == shards


def test_a_held_out_caption_is_never_trained_on_whichever_shards_there_are(
    shards: list[Shard],
) -> None:
    pairs, fewer = Pairs(shards, 0.3, 0), Pairs(shards[:2], 0.3, 0)
    trained = set(captions_of(pairs, pairs.training))
    held = set(captions_of(pairs, pairs.held_out))
    assert trained
    assert held
    assert not trained & held
    assert set(captions_of(fewer, fewer.held_out)) <= held
    assert set(captions_of(fewer, fewer.training)) <= trained


def test_an_epoch_has_every_training_pair_once_and_a_batch_depends_on_its_number_alone(
    shards: list[Shard],
) -> None:
    pairs = Pairs(shards, 0.3, 0)
    n = len(pairs.training)
    assert sorted(pairs.epoch(0, 0)) == sorted(pairs.training)
    assert list(pairs.epoch(0, 0)) != list(pairs.epoch(1, 0))
    order = BatchOrder(n, 5, lambda epoch: pairs.epoch(epoch, 0))
    straight = np.concatenate([order(number) for number in range(2 * n)])
    assert list(straight[:n]) == list(pairs.epoch(0, 0))
    assert list(straight[n : 2 * n]) == list(pairs.epoch(1, 0))
    again = BatchOrder(n, 5, lambda epoch: pairs.epoch(epoch, 0))
    assert list(again(7)) == list(straight[35:40])


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    order = BatchOrder(3, 8, lambda epoch: np.roll(np.arange(3), epoch))
    assert list(order(0)) == [0, 1, 2, 2, 0, 1, 1, 2]


def test_batches_come_in_order_from_wherever_one_starts(shards: list[Shard]) -> None:
    pairs = Pairs(shards, 0.3, 0)
    order = BatchOrder(len(pairs.training), 4, lambda epoch: pairs.epoch(epoch, 0))
    with Images(pairs, 16, 2) as images:
        batch_of = images.in_turn(order)
        for number in (3, 4, 5, 1, 2):
            assert np.array_equal(batch_of(number), images.pixels(order(number)))


def test_tars_are_closed_as_soon_as_others_take_their_place(
    shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laion_assets.generation.pairs.SHARDS_OPEN", 2)
    pairs = Pairs(shards, 0.3, 0)

    def open_tars() -> set[str]:
        links = Path("/proc/self/fd").iterdir()
        opened = {link.readlink() for link in links if link.is_symlink()}
        return {shard.tar.name for shard in shards if shard.tar in opened}

    with Images(pairs, 16, 1) as images:
        for shard in (0, 1, 0, 2):
            images.encoded(pairs.first(shard))
        assert open_tars() == {"00000.tar", "00002.tar"}
        assert images.encoded(pairs.first(1))
        assert open_tars() == {"00001.tar", "00002.tar"}
    assert not open_tars()


def test_a_lost_image_is_reported_with_its_shard(tmp_path: Path, make_shards: MakeShards) -> None:
    (shard,) = make_shards(tmp_path, 1, 12)
    pairs = Pairs([shard], 0.3, 0)
    shard.tar.write_bytes(shard.tar.read_bytes()[:30_000])
    with Images(pairs, 16, 1) as images, pytest.raises(LostImageError, match=r"00000\.tar.*kept"):
        images.pixels(pairs.in_order(0))


def test_shards_that_were_rebuilt_after_the_subset_are_refused(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    """One pair was removed and the following ones moved up: each key has its neighbour's image."""
    (shard,) = make_shards(tmp_path, 1, 12)
    rows = pq.ParquetFile(shard.tar.with_suffix(".parquet")).read()
    moved = rows.set_column(1, "sha256", pa.array([*rows["sha256"].to_pylist()[1:], None]))
    pq.write_table(moved, shard.tar.with_suffix(".parquet"))
    pairs = Pairs([shard], 0.3, 0)
    with (
        Images(pairs, 16, 1) as images,
        pytest.raises(OtherImageError, match=r"00000\.tar has another.*part-00000\.parquet"),
    ):
        images.pixels(pairs.in_order(0))


@pytest.mark.parametrize(
    "captions",
    ["abcdefgh", "aabbccdd", "abababab", "aaaabbbb", "aaaaaaab", "abbbbbbbbbbbbbbbbbbbbbbbbbbbbb"],
)
def test_a_control_has_no_right_caption(tmp_path: Path, captions: str) -> None:
    pairs = Pairs([shard_of(tmp_path, [*captions, *HELD_OUT])], 0.3, 0)
    numbers = np.arange(len(captions))
    others = with_other_captions(pairs, numbers, 0)
    said = captions_of(pairs, others)
    assert all(one != other for one, other in zip(captions, said, strict=True))
    most = max(map(captions.count, captions))
    if 2 * most <= len(captions):
        assert sorted(others) == list(numbers)
    if most == 1:
        assert list(others) == list(np.roll(numbers, 1))


def test_one_caption_is_no_control(tmp_path: Path) -> None:
    pairs = Pairs([shard_of(tmp_path, ["a", "a", *HELD_OUT])], 0.3, 0)
    for numbers in ([0, 1], [0], []):
        with pytest.raises(NoPairsError, match=f"at least two captions, and these {len(numbers)}"):
            with_other_captions(pairs, np.array(numbers, np.int64), 0)


def test_other_keys_captions_or_images_are_other_pairs(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    (shard,) = make_shards(tmp_path, 1, 12)

    def digest(version: str = "") -> str:
        return Pairs([replace(shard, version=version)], 0.3, 0).digest

    seen = [digest(), digest("1"), digest("2")]
    assert digest() == seen[0]
    os.utime(shard.tar, ns=(1, 1))
    seen.append(digest())
    # If the version is known, a copy with another time counts as the same.
    assert digest("1") == seen[1]
    table = pq.ParquetFile(shard.part).read()
    for column in ("key", "TEXT"):
        values = table[column].to_pylist()[::-1]
        changed = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
        pq.write_table(changed, shard.part)
        seen.append(digest("1"))
    assert len(set(seen)) == len(seen)


def test_a_missing_tar_is_reported_with_the_image_that_was_wanted(
    tmp_path: Path, make_shards: MakeShards
) -> None:
    (shard,) = make_shards(tmp_path, 1, 12)
    pairs = Pairs([shard], 0.3, 0)
    for missing in (shard.tar, shard.tar.with_suffix(".parquet")):
        kept = missing.rename(missing.with_suffix(".kept"))
        with (
            Images(pairs, 16, 1) as images,
            pytest.raises(LostImageError, match=r"00000\.tar has no readable image 000000001 "),
        ):
            images.pixels(pairs.in_order(0))
        kept.rename(missing)


def test_a_damaged_jpeg_is_reported_with_its_key(tmp_path: Path, make_shards: MakeShards) -> None:
    (shard,) = make_shards(tmp_path, 1, 12)
    pairs = Pairs([shard], 0.3, 0)
    with tarfile.open(shard.tar) as archive:
        place = archive.getmember("000000001.jpg").offset_data
    whole = bytearray(shard.tar.read_bytes())
    whole[place : place + 20] = bytes(20)
    shard.tar.write_bytes(whole)
    with Images(pairs, 16, 1) as images:
        for read in (lambda: images.pixels(pairs.in_order(0)), lambda: images.stored(0)):
            with pytest.raises(LostImageError, match=r"00000\.tar has no .* 000000001 \(cannot"):
                read()


def test_an_image_of_too_many_pixels_is_reported_with_its_key(
    tmp_path: Path, make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = make_shards(tmp_path, 1, 12)
    pairs = Pairs([shard], 0.3, 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with (
        Images(pairs, 16, 1) as images,
        pytest.raises(LostImageError, match=r"000000001 \(Image size .* exceeds limit"),
    ):
        images.pixels(pairs.in_order(0))


def test_little_of_many_shards_is_in_memory(
    shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only open shards' keys and one shard's captions: there may be a thousand shards."""
    pairs, read = Pairs(shards, 0.3, 0), list[Shard]()
    captions = Shard.captions

    def counted(self: Shard) -> list[str]:
        read.append(self)
        return captions(self)

    monkeypatch.setattr(Shard, "captions", counted)
    numbers = np.array([23, 0, 8, 7, 15, 16])
    said = captions_of(pairs, numbers)
    assert read == shards
    assert said == [captions(shards[at])[row] for at, row in map(pairs.place, numbers.tolist())]
    with Images(pairs, 16, 2) as images:
        images.pixels(numbers)
    assert all(vars(shard).keys() == asdict(shard).keys() for shard in pairs.shards)


def test_without_pairs_it_says_so(tmp_path: Path, shards: list[Shard]) -> None:
    with pytest.raises(NoPairsError, match=r"24 pairs with .* 0 pairs are held out"):
        Pairs(shards, 1e-9, 0)
    with pytest.raises(NoPairsError, match="kept no pairs"):
        Pairs([], 0.3, 0)
    with pytest.raises(NoPairsError, match="3 pairs with 1 captions"):
        Pairs([shard_of(tmp_path, ["a"] * 3)], 0.3, 0)


def test_the_middle_square_is_kept() -> None:
    stripes = Image.new("RGB", (90, 30), "red")
    stripes.paste("blue", (30, 0, 60, 30))
    for kind in ("PNG", "JPEG"):
        out = io.BytesIO()
        stripes.save(out, kind)
        pixels = shrunk(out.getvalue(), 10)
        assert pixels.shape == (10, 10, 3)
        assert (pixels[:, 2:8, 2] > 230).all()
        assert (pixels[:, 2:8, 0] < 25).all()


def test_the_numbers_of_shards_and_rows_agree(shards: list[Shard]) -> None:
    pairs = Pairs(shards, 0.3, 0)
    numbers = np.array([23, 0, 8, 7, 15, 16])
    found = zip(*(part.tolist() for part in pairs.places(numbers)), strict=True)
    assert list(found) == [pairs.place(int(number)) for number in numbers]
    assert list(itertools.chain(*(pairs.in_order(shard) for shard in range(3)))) == list(range(24))
