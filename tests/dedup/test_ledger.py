"""Claims are exact, idempotent, and the same set whatever the order."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import shutil
import signal
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
from laion_assets.dedup import runs
from laion_assets.dedup.ledger import LedgerError, claimed, claiming, release_segment
from laion_assets.funnel import StageCounts
from laion_assets.layout import SegmentKey
from laion_assets.removals.entries import Entries, parse

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
        self.published = root / "published"

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
        self,
        segment: str,
        removals: Entries = NONE,
        blocklists: Entries = NONE,
        *,
        crawl: str = CRAWL,
        stop: str = "",
    ) -> StageCounts:
        """Claim and publish; ``stop`` raises "before" or "after" publishing."""
        key = SegmentKey(crawl, segment)
        target = self.published / key.hive
        staging = self.root / f"staging-{crawl}-{segment}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with claiming(self.ledger, self.published, key) as claims:
            counts = claims.write(
                self.root / "pairs" / segment, staging, removals=removals, blocklists=blocklists
            )
            assert counts.adds_up
            if stop == "before":
                raise StoppedError
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(target)
            if stop == "after":
                raise StoppedError
        return counts

    def release(self, segment: str) -> None:
        release_segment(self.ledger, self.published, SegmentKey(CRAWL, segment))

    def folder(self, segment: str) -> Path:
        return self.published / SegmentKey(CRAWL, segment).hive

    def kept(self, segment: str) -> list[list[int]]:
        *parts, last = sorted(
            self.folder(segment).iterdir(), key=lambda p: (p.suffix != ".parquet", p)
        )
        assert last.name == "claims.json"
        assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(len(parts))]
        tables = [pq.read_table(part, partitioning=None) for part in parts]
        assert all(table.schema == schemas.PAIRS for table in tables)
        return [[int(text.split()[1]) for text in table["text"].to_pylist()] for table in tables]


class StoppedError(Exception):
    pass


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
    before = {p.name: p.read_bytes() for p in world.folder("01").iterdir()}
    assert world.claim("01") == first
    assert {p.name: p.read_bytes() for p in world.folder("01").iterdir()} == before


def test_a_seen_set_would_drop_a_segments_own_samples(world: World) -> None:
    """A Bloom filter or a set of all keys would do this on re-materialization."""
    seen = {uid(number) for number in range(15)}
    assert [number for number in range(15) if uid(number) not in seen] == []
    world.claim("00")
    world.claim("00")
    assert sum(map(len, world.kept("00"))) == 15


def test_another_crawl_has_the_same_segment_numbers(world: World) -> None:
    world.claim("00")
    counts = world.claim("00", crawl="CC-MAIN-2021-10")
    assert counts.rejects == {"duplicate": 15}


def test_a_segment_rebuilt_with_other_pairs_releases_the_rest(world: World) -> None:
    world.claim("00")
    world.pairs("00", [[0, 1, 2]])
    world.claim("00")
    assert world.kept("00") == [[0, 1, 2]]
    assert world.claim("01").kept == 8


def test_release(world: World) -> None:
    world.claim("00")
    world.release("00")
    assert claimed(world.ledger) == {}
    assert world.claim("01").kept == 8
    world.release("07")


def test_lists(world: World) -> None:
    removals = parse(
        [url_of(3), "url:HTTP://H4.example:80/4.jpg#top", "host:h5.example"], "removals"
    )
    blocklists = parse(["host:h5.example", "host:h6.example", f"url:{url_of(2)}"], "blocklists")
    counts = world.claim("00", removals, blocklists)
    assert counts.rejects == {"removed": 4, "blocked": 3}
    assert world.kept("00") == [[0, 1, 7, 8, 9], [10, 11, 14]]
    # Refused pairs are not claimed: no segment holds them.
    assert claimed(world.ledger) == {SegmentKey(CRAWL, "00"): 8}
    counts = world.claim("01", removals)
    assert counts.rejects == {"duplicate": 1, "removed": 2}
    # Once off the lists, they come back.
    assert world.claim("00").kept == 15 - 1
    assert world.claim("00").rejects == {"duplicate": 1}


def test_order_of_reasons(world: World) -> None:
    world.claim("00")
    both = parse([url_of(12)], "both")
    assert world.claim("01", both, both).rejects == {"removed": 1, "duplicate": 2}
    assert world.claim("01", NONE, both).rejects == {"blocked": 1, "duplicate": 2}


def test_a_deleted_partition_releases_its_claims(world: World) -> None:
    world.claim("00")
    shutil.rmtree(world.folder("00"))
    assert world.claim("01").kept == 8
    assert claimed(world.ledger) == {SegmentKey(CRAWL, "01"): 8}


def test_stopped_before_publishing_holds_what_is_published(world: World) -> None:
    with pytest.raises(StoppedError):
        world.claim("00", stop="before")
    assert world.claim("01").kept == 8
    assert world.claim("00").kept == 12
    world.pairs("00", [[0, 1]])
    with pytest.raises(StoppedError):
        world.claim("00", stop="before")
    world.pairs("02", [[0, 1, 2]])
    # The published partition of 00 still holds 2, so no other segment may.
    assert world.claim("02").kept == 0


def test_stopped_after_publishing_holds_what_is_published(world: World) -> None:
    with pytest.raises(StoppedError):
        world.claim("00", stop="after")
    assert world.claim("01").kept == 5
    world.pairs("00", [[0, 1]])
    with pytest.raises(StoppedError):
        world.claim("00", stop="after")
    world.pairs("02", [[0, 1, 2]])
    assert world.claim("02").kept == 1
    assert claimed(world.ledger) == {
        SegmentKey(CRAWL, "00"): 2,
        SegmentKey(CRAWL, "01"): 5,
        SegmentKey(CRAWL, "02"): 1,
    }


def claim_and_die(root: Path, segment: str, at: int) -> None:
    """Claim in a process that kills itself when it publishes its ``at``-th file."""
    replace, done = Path.replace, iter(range(at))

    def replace_or_die(path: Path, target: Path) -> Path:
        if next(done, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = replace_or_die  # type: ignore[method-assign, assignment]
    World(root).claim(segment)


@pytest.mark.parametrize("at", range(6))
def test_sigkill_at_any_step_neither_loses_a_pair_nor_claims_it_for_ever(
    tmp_path: Path, at: int
) -> None:
    world = World(tmp_path)
    world.pairs("00", [range(10)])
    world.pairs("01", [range(5, 20)])
    world.pairs("02", [range(20)])
    world.claim("01")
    process = multiprocessing.get_context("spawn").Process(
        target=claim_and_die, args=(tmp_path, "00", at)
    )
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    world.claim("02")
    segments = [name for name in ("00", "01", "02") if world.folder(name).exists()]
    kept = sorted(row for name in segments for part in world.kept(name) for row in part)
    assert kept == list(range(20))


def test_a_lost_ledger_is_rebuilt_from_the_partitions(world: World) -> None:
    world.claim("00")
    world.claim("01")
    before = claimed(world.ledger)
    shutil.rmtree(world.ledger)
    world.pairs("02", [range(25)])
    assert world.claim("02").kept == 5
    assert claimed(world.ledger) == before | {SegmentKey(CRAWL, "02"): 5}


def test_a_damaged_ledger_says_what_to_do(world: World) -> None:
    world.claim("00")
    run = next(world.ledger.glob("*.high"))
    run.write_bytes(run.read_bytes()[:-8])
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("01")
    (world.ledger / "ledger.json").write_text("{")
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("01")


def test_runs_are_merged_and_void_claims_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAN", 3)
    monkeypatch.setattr(runs, "ROWS_AT_ONCE", 4)
    for number in range(8):
        world.pairs("02", [range(30 + number, 60)])
        world.claim("02")
        world.claim("00")
    world.claim("01")
    assert len(list(world.ledger.glob("*.high"))) <= 5
    assert sum(path.stat().st_size for path in world.ledger.glob("*.high")) < 8 * 200
    assert world.claim("01").kept == 5


def test_no_pairs_at_all(world: World) -> None:
    world.pairs("02", [])
    assert world.claim("02") == StageCounts("unique_pairs")
    assert world.kept("02") == []


@pytest.mark.parametrize("segment", ["../../x", "7", ""])
def test_an_invalid_segment(world: World, segment: str) -> None:
    with pytest.raises(ValueError):
        world.release(segment)


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_bounded_memory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(runs, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(module, "FAN", 2)
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


segments = st.sampled_from(["00", "01", "02", "03"])
steps = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "claim", "before", "after", "delete", "release"]),
        segments,
        st.lists(st.integers(0, 30), unique=True, max_size=15),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_whatever_happens_every_pair_is_held_once(plan: list[tuple[str, str, list[int]]]) -> None:
    """Compare with sets: a published segment holds its pairs, a new claim takes the free ones."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FAN", 2)
        world = World(Path(folder))
        holds: dict[str, set[int]] = {}
        for action, segment, rows in plan:
            if action == "delete":
                shutil.rmtree(world.folder(segment), ignore_errors=True)
                holds.pop(segment, None)
                continue
            if action == "release":
                world.release(segment)
                shutil.rmtree(world.folder(segment), ignore_errors=True)
                holds.pop(segment, None)
                continue
            world.pairs(segment, [rows])
            stop = "" if action == "claim" else action
            try:
                world.claim(segment, stop=stop)
            except StoppedError:
                assert stop
            if stop != "before":
                taken = set().union(*(holds[name] for name in holds if name != segment))
                holds[segment] = set(rows) - taken
                assert world.kept(segment) == [[row for row in rows if row not in taken]]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), unique=True, max_size=15), min_size=2, max_size=4),
    st.randoms(use_true_random=False),
)
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
