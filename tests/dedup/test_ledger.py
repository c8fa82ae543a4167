"""Claims are exact, idempotent, and the same set whatever the order."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets import schemas
from laion_assets.dedup import runs, upkeep
from laion_assets.dedup.ledger import claimed, owners
from laion_assets.dedup.state import LedgerError, load
from laion_assets.funnel import StageCounts
from laion_assets.layout import SegmentKey
from laion_assets.removals.entries import parse
from tests.dedup.world import CRAWL, NONE, StoppedError, World, uid, url_of
from tests.processes import PATIENCE_S


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
    assert world.kept("00") == list(range(15))
    assert world.kept("01") == [15, 16, 17, 18, 19]
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
    assert len(world.kept("00")) == 15


def test_another_crawl_has_the_same_segment_numbers(world: World) -> None:
    world.claim("00")
    counts = world.claim("00", crawl="CC-MAIN-2021-10")
    assert counts.rejects == {"duplicate": 15}


def test_a_segment_rebuilt_with_other_pairs_releases_the_rest(world: World) -> None:
    world.claim("00")
    world.pairs("00", [[0, 1, 2]])
    world.claim("00")
    assert world.kept("00") == [0, 1, 2]
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
    assert world.kept("00") == [0, 1, 7, 8, 9, 10, 11, 14]
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
    """Claim in a process that kills itself before its ``at``-th call of one of the functions that
    change which files there are."""
    done = iter(range(at))

    def or_die(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_die(*args: Any) -> Any:
            if next(done, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return call_or_die

    for name in ("replace", "rename", "unlink"):
        setattr(Path, name, or_die(getattr(Path, name)))
    upkeep.FAN = 2  # type: ignore[misc]
    World(root).claim(segment)


@pytest.mark.parametrize("at", [*range(7), 8, 10, 12, 14, 18])
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
    process.join(PATIENCE_S)
    assert process.exitcode in (0, -signal.SIGKILL)
    world.claim("02")
    assert {path.stem for path in world.ledger.glob("run-*")} == {
        run.name for run in load(world.ledger).runs
    }
    segments = [name for name in ("00", "01", "02") if world.folder(name).exists()]
    kept = sorted(row for name in segments for row in world.kept(name))
    assert kept == list(range(20))


def test_a_ledger_lost_while_a_segment_waits(world: World) -> None:
    """The numbers of owners begin anew, and those that were found mean nothing any more."""
    for segment in ("01", "00"):
        world.claim(segment)
    assert world.kept("00") == list(range(12))

    def lose() -> None:
        shutil.rmtree(world.ledger)
        shutil.rmtree(world.folder("01"))

    world.pairs("02", [range(25)])
    assert world.claim("02", meanwhile=lose).kept == 13


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
    run = next(world.ledger.glob("*.claims"))
    run.write_bytes(run.read_bytes()[:-8])
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("01")
    (world.ledger / "ledger.json").write_text("{")
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("01")


def test_runs_are_merged_and_void_claims_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FAN", 3)
    monkeypatch.setattr(runs, "ROWS_AT_ONCE", 4)
    for number in range(8):
        world.pairs("02", [range(30 + number, 60)])
        world.claim("02")
        world.claim("00")
    world.claim("01")
    held = load(world.ledger).runs
    assert {path.stem for path in world.ledger.glob("run-*")} == {run.name for run in held}
    assert len(held) <= 5
    assert sum(run.rows for run in held) < 200
    assert world.claim("01").kept == 5


@pytest.mark.parametrize("lost", [False, True])
def test_others_claim_while_runs_are_merged(
    world: World, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """And somebody may even delete the ledger."""
    monkeypatch.setattr(upkeep, "FAN", 2)
    merge = runs.merge
    merges: list[runs.SortedRun] = []

    def merge_slowly(*args: Any) -> runs.SortedRun:
        merged = merge(*args)
        merges.append(merged)
        if len(merges) == 1:
            if lost:
                shutil.rmtree(world.ledger)
            world.pairs("02", [range(18, 25)])
            assert world.claim("02").kept == 5
        return merged

    monkeypatch.setattr(runs, "merge", merge_slowly)
    world.claim("00")
    world.claim("01")
    assert merges
    held = load(world.ledger).runs
    assert {path.stem for path in world.ledger.glob("run-*")} == {run.name for run in held}
    world.pairs("03", [range(30)])
    assert world.claim("03").kept == 5
    assert not list(world.ledger.glob(".merging/*"))


def test_owners(world: World) -> None:
    rows = [19, 3, 99, 12, 3]
    ids = np.array([int.from_bytes(uid(row)[:8], "big", signed=True) for row in rows])
    assert owners(world.ledger, ids) == []
    world.claim("00")
    world.claim("01")
    first, second = SegmentKey(CRAWL, "00"), SegmentKey(CRAWL, "01")
    assert owners(world.ledger, ids) == [(0, second), (1, first), (3, first), (4, first)]
    assert owners(world.ledger, ids.view(np.uint64)[:1]) == [(0, second)]
    assert owners(world.ledger, ids[:0]) == []
    world.release("00")
    assert owners(world.ledger, ids) == [(0, second)]


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
    monkeypatch.setattr(upkeep, "FAN", 2)
    rnd = random.Random(at_once)
    world = World(tmp_path)
    holders: dict[int, str] = {}
    for segment, size in (("00", 300), ("01", 3), ("02", 200), ("03", 1)):
        rows = rnd.sample(range(400), size)
        world.pairs(segment, [rows])
        world.claim(segment)
        assert world.kept(segment) == [row for row in rows if row not in holders]
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
    assert world.kept("01") == [0, 4, 10]


segments = st.sampled_from(["00", "01", "02", "03"])
step = st.tuples(
    st.sampled_from(["claim", "claim", "claim", "before", "after", "delete", "release", "lose"]),
    segments,
    st.lists(st.integers(0, 30), unique=True, max_size=15),
)
steps = st.lists(st.tuples(step, st.lists(step, max_size=2)), max_size=8)

Step = tuple[str, str, list[int]]


class Expected:
    """A published segment holds its pairs, a new claim takes the free ones."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.holds: dict[str, set[int]] = {}

    def do(self, step: Step, meanwhile: list[Step]) -> None:
        """Take a step, and others while it waits for the ledger's lock."""
        world, (action, segment, rows) = self.world, step
        if action == "lose":
            shutil.rmtree(world.ledger, ignore_errors=True)
        elif action in ("delete", "release"):
            if action == "release":
                world.release(segment)
            shutil.rmtree(world.folder(segment), ignore_errors=True)
            self.holds.pop(segment, None)
        else:
            world.pairs(segment, [rows])
            stop = "" if action == "claim" else action
            try:
                world.claim(segment, stop=stop, meanwhile=lambda: self.do_all(segment, meanwhile))
            except StoppedError:
                assert stop
            if stop != "before":
                others = (held for name, held in self.holds.items() if name != segment)
                taken: set[int] = set().union(*others)
                self.holds[segment] = set(rows) - taken
                assert world.kept(segment) == [row for row in rows if row not in taken]

    def do_all(self, segment: str, steps: list[Step]) -> None:
        for step in steps:
            # A partition is made by one process at a time.
            if step[1] != segment:
                self.do(step, [])


@settings(max_examples=60, deadline=None)
@given(steps)
def test_whatever_happens_every_pair_is_held_once(plan: list[tuple[Step, list[Step]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "FAN", 2)
        expected = Expected(World(Path(folder)))
        for step, meanwhile in plan:
            expected.do(step, meanwhile)


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
        kept = [row for name in names for row in world.kept(name)]
        assert sorted(kept) == sorted({row for rows in plan for row in rows})
        assert claimed(world.ledger) == {
            SegmentKey(CRAWL, name): len(world.kept(name)) for name in names
        }


def claim_in_process(root: Path, segments: Sequence[str]) -> None:
    upkeep.FAN = 2  # type: ignore[misc]
    for segment in segments:
        World(root).claim(segment)


def test_two_writers_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    segments = [["00", "01", "02", "03"], ["10", "11", "12", "13"]]
    for number, segment in enumerate([*segments[0], *segments[1]]):
        world.pairs(segment, [range(number, 200 + number)])
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=claim_in_process, args=(tmp_path, some)) for some in segments
    ]
    # Both wait at the lock, so that they start together.
    world.ledger.mkdir()
    handle = os.open(world.ledger / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for process in processes:
        process.start()
    os.close(handle)
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    kept = [row for some in segments for segment in some for row in world.kept(segment)]
    assert sorted(kept) == list(range(207))
    held = load(world.ledger).runs
    assert {path.stem for path in world.ledger.glob("run-*")} == {run.name for run in held}
