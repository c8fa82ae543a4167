"""Clusters within a segment and across segments, and the ledger that holds them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.duplicates.planted import ORIGINAL, REACHED, Planted, clusters, measured
from benchmarks.duplicates.segments import OPTIONS, Segments
from laion_assets.dedup.claims import KeyClaims
from laion_assets.dedup.runs import Columns
from laion_assets.dedup.state import load
from laion_assets.layout import CLUSTER_LEDGER, NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.clusters import Hits, cluster_of, find_foreign, judged
from laion_assets.near_duplicates.keys import CHOICES, MOST_OTHER, Keys, entries_of, keys_of
from laion_assets.near_duplicates.signature import FREQUENCIES, SIGNATURE, Signatures
from tests.near_duplicates.conftest import PICTURES, rows_of_kinds

FIRST, SECOND, THIRD = (SegmentKey("CC-MAIN-2021-01", f"0{number}") for number in range(3))


def test_copies_are_found_and_look_alikes_are_not(planted: Planted) -> None:
    found = measured(planted, clusters(planted, OPTIONS))
    assert found[ORIGINAL] == (1.0, 1.0)
    for kind in (*REACHED, "mirrored"):
        assert found[kind] == (1.0, 1.0), kind
    assert {precision for _, precision in found.values()} == {1.0}


def test_the_first_of_a_cluster_is_the_largest_original(
    planted: Planted, segments: Segments
) -> None:
    rows = rows_of_kinds(planted, ORIGINAL, "resized", "recompressed")
    found = segments.make(FIRST, rows)
    assert (found.clusters, found.copies, found.foreign) == (PICTURES, 2 * PICTURES, 0)
    made = segments.clusters(FIRST)
    for picture in range(PICTURES):
        mine = [row for row in rows if planted.picture[row] == picture]
        assert len({made[row][0] for row in mine}) == 1
        (first,) = (row for row in mine if made[row][1])
        assert planted.pixels[first] == max(planted.pixels[mine])


def test_a_later_segment_joins_and_whoever_is_first_keeps(
    planted: Planted, segments: Segments
) -> None:
    originals, copies = (rows_of_kinds(planted, kind) for kind in (ORIGINAL, "recompressed"))
    segments.make(FIRST, originals)
    found = segments.make(SECOND, copies)
    assert (found.clusters, found.foreign) == (0, PICTURES)
    one = segments.clusters(FIRST, SECOND)
    for row in copies:
        assert one[row] == (one[originals[planted.picture[row]]][0], False)
    again = segments.lake.manifest(NEAR_DUPLICATES, SECOND).data_version
    segments.make(SECOND, copies)
    segments.make(FIRST, originals)
    assert segments.lake.manifest(NEAR_DUPLICATES, SECOND).data_version == again
    assert segments.clusters(FIRST, SECOND) == one
    # In the other order the same images are together, under the other ones' numbers.
    shutil.rmtree(segments.lake.root)
    segments.make(SECOND, copies)
    segments.make(FIRST, originals)
    other = segments.clusters(FIRST, SECOND)
    assert all(other[row][1] for row in copies)
    assert {row: of for row, (of, _) in other.items()}.keys() == one.keys()
    for row in copies:
        assert other[row][0] == other[originals[planted.picture[row]]][0]


def test_what_failed_claims_nothing_and_what_is_deleted_is_released(
    planted: Planted, segments: Segments
) -> None:
    originals = rows_of_kinds(planted, ORIGINAL)
    with pytest.raises(InterruptedError):
        segments.make(FIRST, originals, fail=True)
    assert segments.make(SECOND, originals).clusters == PICTURES
    assert segments.make(FIRST, originals).foreign == PICTURES
    shutil.rmtree(segments.lake.root / NEAR_DUPLICATES / SECOND.hive)
    assert segments.make(FIRST, originals).clusters == PICTURES


def test_a_lost_ledger_is_rebuilt_from_the_partitions(planted: Planted, segments: Segments) -> None:
    segments.make(FIRST, rows_of_kinds(planted, ORIGINAL))
    shutil.rmtree(segments.lake.root / CLUSTER_LEDGER)
    found = segments.make(SECOND, rows_of_kinds(planted, "resized", "mirrored"))
    assert (found.clusters, found.foreign) == (0, 2 * PICTURES)


def test_a_cluster_goes_on_without_its_first_image(planted: Planted, segments: Segments) -> None:
    rows = rows_of_kinds(planted, ORIGINAL, "resized", "recompressed")
    segments.make(FIRST, rows)
    gone = [row for row, (_, first) in segments.clusters(FIRST).items() if first]
    left = sorted({*rows} - {*gone})
    assert segments.make(FIRST, left).clusters == PICTURES
    made = segments.clusters(FIRST)
    assert not {of for of, _ in made.values()} & set(
        cluster_of(planted.images["sha256"][gone]).tolist()
    )
    assert segments.make(THIRD, gone).foreign == PICTURES


@pytest.fixture
def in_a_row(planted: Planted, segments: Segments) -> Segments:
    """Three images in a row, of falling size but for the middle one: it is like both others and
    nearer to the last, and these are not alike. The fourth is like none."""
    chance = np.random.default_rng(0)
    one, way, other = chance.choice([-60, 60], (3, FREQUENCIES))
    images = np.zeros(4, SIGNATURE)
    for row, step in enumerate((0, 0.23, 0.45)):
        images["looks"][row] = one + step * way
    images["looks"][3] = other
    images["sha256"] = chance.integers(0, 256, images["sha256"].shape)
    images["model"] = np.arange(4)
    segments.planted = Planted(
        np.zeros(4, np.int64), planted.kind[:4], images, np.array([4, 1, 3, 2]), planted.phash[:4]
    )
    alike = judged(images[[0, 1, 0]], images[[1, 2, 2]], OPTIONS)
    assert OPTIONS.likeness <= alike[0] < alike[1]
    assert alike[2] == -1
    return segments


def test_an_image_joins_the_earliest_cluster_not_the_nearest(in_a_row: Segments) -> None:
    assert in_a_row.make(FIRST, [0]).clusters == 1
    assert in_a_row.make(SECOND, [2]).clusters == 1
    assert in_a_row.make(THIRD, [1]).foreign == 1
    made = in_a_row.clusters(FIRST, SECOND, THIRD)
    assert made[1][0] == made[0][0] != made[2][0]


def test_an_image_stays_in_its_cluster_whatever_others_have_begun_since(in_a_row: Segments) -> None:
    in_a_row.make(FIRST, [0])
    in_a_row.make(SECOND, [1, 2])
    made = in_a_row.clusters(FIRST, SECOND)
    assert made[1][0] == made[0][0] != made[2][0]
    version = in_a_row.lake.manifest(NEAR_DUPLICATES, SECOND).data_version
    # The first segment claims anew, so its clusters are now later than those of the second.
    in_a_row.make(FIRST, [0, 3])
    in_a_row.make(SECOND, [1, 2])
    assert in_a_row.lake.manifest(NEAR_DUPLICATES, SECOND).data_version == version
    # An image that was in none joins what is now the earlier one.
    shutil.rmtree(in_a_row.lake.root / NEAR_DUPLICATES / SECOND.hive)
    in_a_row.make(SECOND, [2])
    in_a_row.make(FIRST, [0, 3, 1])
    assert in_a_row.clusters(FIRST)[1][0] == made[0][0]


def test_of_an_owners_clusters_the_nearest_is_taken_however_the_work_is_cut(
    in_a_row: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = in_a_row.planted.images

    def find(keys: Keys) -> Hits:
        nth = np.repeat(np.flatnonzero(np.isin(keys, keys_of(images[1:2]))), 2)
        zeros = np.zeros(len(nth), np.int64)
        return Hits(nth, zeros, np.tile([0, 1], len(nth) // 2), np.zeros(len(nth), np.uint32))

    def read(_: int, rows: NDArray[np.int64]) -> Signatures:
        return images[[0, 2]][rows]

    monkeypatch.setattr("laion_assets.near_duplicates.clusters.MOST_OTHER", 32)
    images["cluster"] = [10, 0, 30, 0]
    for at_once in (4096, 1):
        monkeypatch.setattr("laion_assets.near_duplicates.clusters._JUDGED_AT_ONCE", at_once)
        assert find_foreign(images[1:2], find, read, OPTIONS).cluster.tolist() == [30]


def test_the_same_bytes_in_two_segments_stay_where_they_are(
    planted: Planted, segments: Segments
) -> None:
    originals = rows_of_kinds(planted, ORIGINAL)
    segments.make(FIRST, originals)
    segments.make(SECOND, originals)
    before = [segments.lake.manifest(NEAR_DUPLICATES, key).data_version for key in (FIRST, SECOND)]
    for number, key in enumerate((FIRST, SECOND)):
        segments.make(key, originals)
        assert segments.lake.manifest(NEAR_DUPLICATES, key).data_version == before[number]


def test_a_rebuild_looks_up_only_what_is_new(
    planted: Planted, segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of_kinds(planted, ORIGINAL, "bordered")
    segments.make(FIRST, rows_of_kinds(planted, "resized"))
    segments.make(SECOND, rows[1:])
    asked: list[int] = []
    find = KeyClaims.find

    def counting(self: KeyClaims, keys: Keys) -> tuple[NDArray[np.int64], Columns]:
        asked.append(len(keys))
        return find(self, keys)

    monkeypatch.setattr(KeyClaims, "find", counting)
    segments.make(SECOND, rows[1:])
    assert 0 < sum(asked) <= len(rows)
    asked.clear()
    segments.make(SECOND, rows)
    of_one = entries_of(planted.images[rows[:1]], np.zeros(1, np.int64), asking=True)
    assert len(rows) < sum(asked) <= len(rows) + len(np.unique(of_one.key))


def test_a_rebuild_leaves_no_claim_of_what_is_gone(planted: Planted, segments: Segments) -> None:
    originals = rows_of_kinds(planted, ORIGINAL)
    segments.make(FIRST, originals)
    segments.make(SECOND, rows_of_kinds(planted, "resized"))
    gone = keys_of(planted.images[originals[:1]])[0]
    ledger = segments.lake.root / CLUSTER_LEDGER

    def held() -> list[int]:
        content = b"".join(path.read_bytes() for path in ledger.iterdir())
        return [key for key in gone.tolist() if key.to_bytes(8, "little") in content]

    assert len(held()) == len(gone)
    segments.make(FIRST, originals[1:])
    assert held() == []
    runs = load(ledger).runs
    segments.make(FIRST, originals[1:])
    assert load(ledger).runs == runs


def test_a_look_up_reads_few_of_the_images_that_share_a_key_by_chance() -> None:
    chance = np.random.default_rng(0)
    images = np.zeros(1, SIGNATURE)
    images["looks"] = chance.integers(-127, 128, images["looks"].shape)
    images["sha256"] = 1
    hits, read_rows = 0, set()

    def find(keys: Keys) -> Hits:
        nonlocal hits
        nth = np.repeat(np.arange(len(keys)), 20)
        hits += len(nth)
        sketch = chance.integers(0, 1 << 32, len(nth), np.uint32)
        return Hits(nth, np.zeros(len(nth), np.int64), np.arange(len(nth)), sketch)

    def read(_: int, rows: NDArray[np.int64]) -> Signatures:
        read_rows.update(rows.tolist())
        return np.zeros(len(rows), SIGNATURE)

    assert find_foreign(images, find, read, OPTIONS).likeness.tolist() == [-1]
    assert hits > 1000
    assert len(read_rows) < hits / 100


@pytest.mark.parametrize("place", [0, 1], ids=["weakest", "next"])
def test_who_asks_finds_an_image_that_differs_in_a_weak_sign(planted: Planted, place: int) -> None:
    """In a choice of signs that has this sign; the others have the same key anyway."""
    image = planted.images[:1]
    asked, held = (entries_of(image, np.zeros(1, np.int64), asking=way) for way in (True, False))
    sizes = np.abs(image["looks"][0, 0].astype(np.int16))
    weakest = int(np.argsort(sizes, kind="stable")[place])
    other = image.copy()
    sign = 1 if image["looks"][0, 0, weakest] <= 0 else -1
    other["looks"][0, 0, weakest] = sign * max(1, abs(int(image["looks"][0, 0, weakest])))
    changed = np.setdiff1d(keys_of(other)[0, :CHOICES], keys_of(image)[0])
    assert 0 < len(changed) <= CHOICES
    assert not np.isin(changed, held.key).any()
    assert np.isin(changed, asked.key).all()
    theirs = entries_of(other, np.zeros(1, np.int64))
    for key in changed:
        sketches = asked.sketch[asked.key == key], theirs.sketch[theirs.key == key]
        assert np.bitwise_count(sketches[0][:, None] ^ sketches[1]).min() <= MOST_OTHER


def test_keys_that_are_held_are_of_the_image_as_it_is(planted: Planted) -> None:
    image = planted.images[:1]
    held = entries_of(image, np.zeros(1, np.int64)).key
    assert set(held.tolist()) <= set(keys_of(image)[0].tolist())
