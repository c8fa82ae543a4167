"""Listed samples are found by every kind of entry: by look-up, or row by row without one."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laion_assets.defs.removal.survey import Survey, survey
from laion_assets.lake import LakeError, LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.lookup.files import LookupDamagedError
from laion_assets.lookup.write import FILES, write_lookups
from laion_assets.removals.active import read_lists
from laion_assets.removals.entry import key_of
from laion_assets.removals.ledger import RemovalCounts, note_removals
from laion_assets.schemas import sample_id_of
from tests.stats.conftest import SEGMENTS, SegmentFiles, counts, hash_of

KEYS = [SegmentKey(*segment) for segment in SEGMENTS]
TO_SUBSET = ("pair_parquet", "unique_pairs", "image_shards", "embeddings", "scored_pairs")
ALL = (*TO_SUBSET, "filtered_subset")


@pytest.fixture(params=["look-ups", "no look-ups"])
def segments(tmp_path: Path, request: pytest.FixtureRequest) -> list[SegmentFiles]:
    made = [SegmentFiles(tmp_path / "lake", *segment) for segment in SEGMENTS]
    for segment in made:
        segment.write()
        for asset in FILES if request.param == "look-ups" else ():
            write_lookups(asset, segment.folder(asset))
    return made


def found(segments: list[SegmentFiles], *entries: str) -> Survey:
    lake = LocalLake.at(segments[0].lake)
    (lake.root / "removals").mkdir(exist_ok=True)
    (lake.root / "removals" / "mine.txt").write_text("\n".join(entries))
    return survey(lake, read_lists(lake.root))


def total(seen: Survey) -> Counter[str]:
    """Number of listed rows of each asset, summed over all partitions."""
    return sum(seen.samples.values(), Counter())


def digest(url: str, kind: str) -> str:
    return f"url-{kind}:{hashlib.new(kind, url.encode()).hexdigest()}"


@pytest.mark.parametrize("kind", ["url", "url-sha256", "url-md5", "sample-id"])
def test_one_pair_is_found_in_every_table_that_has_it(
    segments: list[SegmentFiles], kind: str
) -> None:
    for row, assets in ((3, ALL), (30, TO_SUBSET), (50, TO_SUBSET[:3]), (57, TO_SUBSET[:1])):
        pair = segments[1].pairs[row]
        entry = {
            "url": pair["url"],
            "url-sha256": digest(pair["url"], "sha256"),
            "url-md5": digest(pair["url"], "md5"),
            "sample-id": f"sample-id:{sample_id_of(pair['uid'])}",
        }[kind]
        assert found(segments, entry).samples == {KEYS[1]: dict.fromkeys(assets, 1)}, row


def test_a_partition_of_an_earlier_layout_is_not_taken_for_clean(
    segments: list[SegmentFiles],
) -> None:
    folder = segments[1].folder("image_shards")
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "_manifest.json":
            path.unlink()
    segments[1].describe_again("image_shards")
    with pytest.raises(LakeError, match="an earlier version made it"):
        found(segments, f"sha256:{hash_of(8)}")


@pytest.mark.parametrize("asset", ALL)
def test_a_damaged_table_is_not_read_but_named(segments: list[SegmentFiles], asset: str) -> None:
    pair = segments[1].pairs[3]
    (path, *_) = sorted(segments[1].folder(asset).glob("*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    seen = found(segments, f"url:{pair['url']}")
    assert seen.damaged == {KEYS[1]: {asset}}
    assert seen.keys == [KEYS[1]]
    assert asset in seen.holding(KEYS[1])
    assert asset not in total(seen)
    if (segments[1].folder(asset) / "_lookup").exists():
        # Nothing is read of a segment that holds nothing listed.
        assert not found(segments, f"url:{segments[0].pairs[3]['url']}").damaged


def test_a_partition_that_is_deleted_meanwhile_holds_nothing(segments: list[SegmentFiles]) -> None:
    seen, lake = Survey(), LocalLake.at(segments[0].lake)
    shutil.rmtree(segments[1].folder("embeddings"))
    assert not seen.readable(lake, "embeddings", KEYS[1])
    assert not seen.damaged


def test_an_image_is_found_by_its_bytes_in_whatever_segment(segments: list[SegmentFiles]) -> None:
    """Rows 8 and 9 have one image, and the segments have the same images."""
    for entry in (f"sha256:{hash_of(8)}", f"md5:{hash_of(8)[:32]}"):
        seen = found(segments, entry)
        assert seen.samples == {key: dict.fromkeys(ALL, 2) for key in KEYS}
    assert total(seen) == dict.fromkeys(ALL, 6)


def test_urls_that_lead_to_a_listed_image_are_noted_and_found(segments: list[SegmentFiles]) -> None:
    """A duplicate among another segment's pairs has the URL of the image, and no hash."""
    last = segments[2]
    last.pairs[57] = {**segments[0].pairs[8], "text": "another", "uid": b"u" * 16}
    last.table("pair_parquet", "part-00001.parquet", last.pairs[30:], _schema(last))
    for asset in FILES if (last.folder("pair_parquet") / "_lookup").exists() else ():
        write_lookups(asset, last.folder(asset))
    last.describe_again("pair_parquet")
    seen = found(segments, f"sha256:{hash_of(8)}")
    assert seen.resolved == 6
    assert seen.samples[KEYS[2]]["pair_parquet"] == 3
    assert seen.samples[KEYS[2]]["unique_pairs"] == 2
    assert found(segments, f"sha256:{hash_of(8)}").resolved == 0


def _schema(segment: SegmentFiles) -> object:
    return pq.read_schema(segment.folder("pair_parquet") / "part-00000.parquet")


@pytest.mark.parametrize(
    ("entry", "pairs", "images"),
    [("host:a.test", 20, 19), ("host:.test", 60, 55), ("host:.st", 0, 0)],
)
def test_a_host_is_found_with_its_sub_domains(
    segments: list[SegmentFiles], entry: str, pairs: int, images: int
) -> None:
    seen = total(found(segments, entry))
    assert (seen["pair_parquet"], seen["image_shards"]) == (3 * pairs, 3 * images)


@pytest.mark.parametrize("entry", ["host:cdn.test", "url:http://cdn.test/"])
def test_a_redirect_is_found_though_no_pair_names_it(
    segments: list[SegmentFiles], entry: str
) -> None:
    """Every seventh of 55 images was reached through it."""
    seen = found(segments, entry)
    assert seen.resolved == 24
    assert total(seen) == {
        "pair_parquet": 24,
        "unique_pairs": 24,
        "image_shards": 24,
        "embeddings": 18,
        "scored_pairs": 18,
        "filtered_subset": 12,
    }


def test_many_entries_of_all_kinds_are_found_together(segments: list[SegmentFiles]) -> None:
    pairs = segments[0].pairs
    absent = [f"http://absent.test/{row}" for row in range(5000)]
    seen = found(
        segments,
        *absent,
        *(pair["url"] for pair in pairs[:5]),
        *(digest(pair["url"], "md5") for pair in pairs[10:12]),
        f"sample-id:{sample_id_of(pairs[20]['uid'])}",
        "sample-id:7",
        f"md5:{'0' * 32}",
    )
    assert seen.samples == {KEYS[0]: dict.fromkeys(ALL, 8)}


def test_what_the_lake_does_not_hold_is_not_found(segments: list[SegmentFiles]) -> None:
    for entries in ([], ["http://nobody.test/a.jpg"], [f"sha256:{'0' * 64}"], ["host:nobody.test"]):
        seen = found(segments, *entries)
        assert (seen.samples, seen.keys, seen.aggregate, seen.resolved) == ({}, [], 0, 0)


@pytest.mark.parametrize("segments", ["look-ups"], indirect=True)
def test_partitions_that_hold_nothing_are_not_read(segments: list[SegmentFiles]) -> None:
    for segment in (segments[0], segments[2]):
        for asset in ALL:
            for part in segment.folder(asset).glob("part-*.parquet"):
                part.write_bytes(b"unreadable")
    pair = segments[1].pairs[3]
    for entry in (pair["url"], f"sample-id:{sample_id_of(pair['uid'])}"):
        assert found(segments, entry).samples == {KEYS[1]: dict.fromkeys(ALL, 1)}


@pytest.mark.parametrize("segments", ["look-ups"], indirect=True)
def test_a_damaged_look_up_is_an_error_and_an_absent_one_is_none(
    segments: list[SegmentFiles],
) -> None:
    path = segments[1].folder("pair_parquet") / "_lookup" / "url"
    path.write_bytes(path.read_bytes()[:-4])
    url = segments[1].pairs[3]["url"]
    with pytest.raises(LookupDamagedError, match=f"{KEYS[1].hive}/_lookup/url is damaged: mat"):
        found(segments, url)
    path.unlink()
    assert found(segments, url).samples == {KEYS[1]: dict.fromkeys(ALL, 1)}


def test_what_has_left_the_pairs_is_found_in_what_was_made_of_them(
    segments: list[SegmentFiles],
) -> None:
    """The pairs were extracted again, by rules that refuse the pair, and nothing else was."""
    segment, pair = segments[1], segments[1].pairs[3]
    segment.table("pair_parquet", "part-00000.parquet", segment.pairs[4:30], _schema(segment))
    if (segment.folder("pair_parquet") / "_lookup").exists():
        write_lookups("pair_parquet", segment.folder("pair_parquet"))
    (segment.folder("pair_parquet") / "_manifest.json").touch()
    for entry in (pair["url"], f"sample-id:{sample_id_of(pair['uid'])}"):
        assert found(segments, entry).samples == {KEYS[1]: dict.fromkeys(ALL[1:], 1)}


def test_only_the_segments_asked_for_are_searched(segments: list[SegmentFiles]) -> None:
    lake = LocalLake.at(segments[0].lake)
    found(segments, "host:.test")
    seen = survey(lake, read_lists(lake.root), keys=KEYS[1:2])
    assert set(seen.samples) == {KEYS[1]}


def test_a_partition_that_lacks_what_is_listed_no_more_is_named(
    segments: list[SegmentFiles],
) -> None:
    lake, segment = LocalLake.at(segments[0].lake), segments[1]
    segment.manifest("unique_pairs", [counts("unique_pairs", 55, {"removed": 5})])
    taken = RemovalCounts({("removals", key_of("url", "http://gone.test/a.jpg")): 5})
    note_removals(lake.root, "unique_pairs", KEYS[1], taken, run_id="r", returns=False)
    assert found(segments, "http://gone.test/a.jpg").returning == set()
    assert found(segments, "http://other.test/a.jpg").returning == {KEYS[1]}
    segment.manifest("unique_pairs", [counts("unique_pairs", 60, {})])
    assert found(segments).returning == set()
