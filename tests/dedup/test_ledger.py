"""Claims are exact, idempotent, and the same set whatever the order."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets import schemas
from laion_assets.dedup import ledger as module
from laion_assets.dedup.ledger import claim_segment, claimed, release_segment
from laion_assets.funnel import StageCounts
from laion_assets.progress import silent
from laion_assets.removals.lists import Entries, parse
from laion_assets.segments import SegmentKey

CRAWL = "CC-MAIN-2021-04"
NONE = Entries()


def url_of(number: int) -> str:
    return f"http://h{number % 7}.example/{number}.jpg"


def uid(number: int) -> bytes:
    return schemas.uid_of(url_of(number), f"text {number}")


class World:
    """A ledger, and segments given as the numbers of their pairs, part by part."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = root / "ledger"

    def pairs(self, segment: str, parts: Sequence[Sequence[int]]) -> Path:
        folder = self.root / "pairs" / segment
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, rows in enumerate(parts):
            columns: dict[str, list[object]] = {
                "uid": [uid(row) for row in rows],
                "url": [url_of(row) for row in rows],
                "text": [f"text {row}" for row in rows],
                "language_score": [0.9] * len(rows),
            }
            table = pa.table(
                [
                    pa.array(columns.get(field.name, [segment] * len(rows)), field.type)
                    for field in schemas.PAIRS
                ],
                schema=schemas.PAIRS,
            )
            pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=4)
        return folder

    def claim(
        self, segment: str, removals: Entries = NONE, blocklists: Entries = NONE
    ) -> StageCounts:
        out = self.root / "out" / segment
        out.mkdir(parents=True, exist_ok=True)
        counts = claim_segment(
            self.ledger,
            CRAWL,
            segment,
            self.root / "pairs" / segment,
            out,
            removals=removals,
            blocklists=blocklists,
            log=silent,
        )
        assert counts.adds_up
        return counts

    def kept(self, segment: str) -> list[list[int]]:
        parts = sorted((self.root / "out" / segment).iterdir())
        assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(len(parts))]
        tables = [pq.read_table(part) for part in parts]
        assert all(table.schema == schemas.PAIRS for table in tables)
        return [[int(text.split()[1]) for text in table["text"].to_pylist()] for table in tables]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.pairs("00", [range(10), range(10, 15)])
    world.pairs("01", [range(12, 20), []])
    return world


def test_first_come_first_kept_in_order(world: World) -> None:
    assert world.claim("00").rejects == {}
    counts = world.claim("01")
    assert counts.rows()[1:] == [("unique_pairs", "kept", 5), ("unique_pairs", "duplicate", 3)]
    assert counts.examples == {"duplicate": [url_of(12), url_of(13), url_of(14)]}
    assert world.kept("00") == [list(range(10)), list(range(10, 15))]
    assert world.kept("01") == [[15, 16, 17, 18, 19], []]
    assert claimed(world.ledger) == {SegmentKey(CRAWL, "00"): 15, SegmentKey(CRAWL, "01"): 5}


def test_again_keeps_its_own_samples(world: World) -> None:
    world.claim("00")
    first = world.claim("01")
    before = {p.name: p.read_bytes() for p in (world.root / "out" / "01").iterdir()}
    assert world.claim("01") == first
    assert {p.name: p.read_bytes() for p in (world.root / "out" / "01").iterdir()} == before


def test_a_seen_set_would_drop_a_segments_own_samples(world: World) -> None:
    """What a Bloom filter or a set of all keys does on re-materialization."""
    seen = {uid(number) for number in range(15)}
    assert [number for number in range(15) if uid(number) not in seen] == []
    world.claim("00")
    world.claim("00")
    assert sum(map(len, world.kept("00"))) == 15


def test_another_crawl_has_the_same_segment_numbers(world: World) -> None:
    world.claim("00")
    counts = claim_segment(
        world.ledger, "CC-MAIN-2021-10", "00", world.root / "pairs" / "00", world.root,
        removals=NONE, blocklists=NONE, log=silent,
    )  # fmt: skip
    assert counts.rejects == {"duplicate": 15}


def test_made_anew_with_other_pairs_lets_go_of_the_rest(world: World) -> None:
    world.claim("00")
    world.pairs("00", [[0, 1, 2]])
    world.claim("00")
    assert world.kept("00") == [[0, 1, 2]]
    assert world.claim("01").kept == 8


def test_release(world: World) -> None:
    world.claim("00")
    release_segment(world.ledger, CRAWL, "00", silent)
    assert claimed(world.ledger) == {}
    assert world.claim("01").kept == 8
    release_segment(world.ledger, CRAWL, "07", silent)


def test_lists(world: World) -> None:
    removals = parse(
        [url_of(3), "url:HTTP://H4.example:80/4.jpg#top", "host:h5.example"], "removals"
    )
    blocklists = parse(["host:h5.example", "host:h6.example", f"url:{url_of(2)}"], "blocklists")
    counts = world.claim("00", removals, blocklists)
    assert counts.rejects == {"removed": 4, "blocked": 3}
    assert world.kept("00") == [[0, 1, 7, 8, 9], [10, 11, 14]]
    # What a list refuses is not claimed: it is for no segment to hold.
    assert claimed(world.ledger) == {SegmentKey(CRAWL, "00"): 8}
    counts = world.claim("01", removals)
    assert counts.rejects == {"duplicate": 1, "removed": 2}
    # Taken off the lists, they come back.
    assert world.claim("00").kept == 15 - 1
    assert world.claim("00").rejects == {"duplicate": 1}


def test_order_of_reasons(world: World) -> None:
    world.claim("00")
    both = parse([url_of(12)], "both")
    assert world.claim("01", both, both).rejects == {"removed": 1, "duplicate": 2}
    assert world.claim("01", NONE, both).rejects == {"blocked": 1, "duplicate": 2}


def test_killed_between_claim_and_publish(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_kept", killed)
        with pytest.raises(KeyboardInterrupt):
            world.claim("00")
    assert claimed(world.ledger) == {SegmentKey(CRAWL, "00"): 15}
    assert world.claim("01").kept == 5
    assert world.claim("00").kept == 15
    assert sum(map(len, world.kept("00"))) == 15


def test_killed_while_claims_are_written(world: World) -> None:
    world.claim("01")
    (world.ledger / f".0123456789ab.{CRAWL}+00.uids").write_bytes(uid(1))
    (world.root / "out" / "00").mkdir(parents=True)
    (world.root / "out" / "00" / "part-00009.parquet").write_bytes(b"of an earlier call")
    assert world.claim("00").kept == 12
    assert len(world.kept("00")) == 2
    assert sorted(path.name for path in world.ledger.iterdir()) == [
        ".lock",
        f"{CRAWL}+00.uids",
        f"{CRAWL}+01.uids",
    ]


def test_claims_are_sorted_uids_and_nothing_else(world: World) -> None:
    world.claim("00")
    data = (world.ledger / f"{CRAWL}+00.uids").read_bytes()
    assert data == b"".join(sorted(uid(number) for number in range(15)))


def test_no_pairs_at_all(world: World) -> None:
    world.pairs("02", [])
    assert world.claim("02") == StageCounts("unique_pairs")
    assert world.kept("02") == []


@pytest.mark.parametrize("segment", ["../../x", "7", ""])
def test_a_segment_that_is_none(world: World, segment: str) -> None:
    with pytest.raises(ValueError):
        release_segment(world.ledger, CRAWL, segment, silent)


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_bounded_memory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", at_once)
    rnd = random.Random(at_once)
    world = World(tmp_path)
    holders: dict[int, str] = {}
    for segment, size in (("00", 300), ("01", 3), ("02", 200), ("03", 1)):
        rows = rnd.sample(range(400), size)
        world.pairs(segment, [rows])
        world.claim(segment)
        assert world.kept(segment) == [[row for row in rows if row not in holders]]
        holders |= {row: segment for row in rows if row not in holders}


def test_uids_that_share_their_first_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        schemas, "uid_of", lambda url, text: b"same" * 2 + int(text[5:]).to_bytes(8, "big")
    )
    world = World(tmp_path)
    world.pairs("00", [[5, 1, 9, 3]])
    world.pairs("01", [[0, 9, 4, 5, 10]])
    world.claim("00")
    world.claim("01")
    assert world.kept("01") == [[0, 4, 10]]


plans = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=15), min_size=2, max_size=4)


@settings(max_examples=15, deadline=None)
@given(plans, st.randoms(use_true_random=False))
def test_any_order_and_repetition_keeps_the_same_set_once(
    plan: list[list[int]], rnd: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        names = [f"{i:02d}" for i in range(len(plan))]
        for name, rows in zip(names, plan, strict=True):
            world.pairs(name, [rows])
        order = names + rnd.choices(names, k=3)
        rnd.shuffle(order)
        for name in order:
            world.claim(name)
        kept = [row for name in names for part in world.kept(name) for row in part]
        assert sorted(kept) == sorted({row for rows in plan for row in rows})
        assert claimed(world.ledger) == {
            SegmentKey(CRAWL, name): sum(map(len, world.kept(name))) for name in names
        }


def claim_in_process(root: Path, segment: str) -> None:
    World(root).claim(segment)


def test_two_writers_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    segments = ["00", "01"]
    for segment in segments:
        world.pairs(segment, [range(200)])
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=claim_in_process, args=(tmp_path, segment)) for segment in segments
    ]
    # All wait at the lock, so that they start together.
    world.ledger.mkdir()
    handle = os.open(world.ledger / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for process in processes:
        process.start()
    os.close(handle)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    kept = [row for segment in segments for part in world.kept(segment) for row in part]
    assert sorted(kept) == list(range(200))
