"""Sorted runs and their filters, on their own."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.dedup.filter import Filter, FilterWriter, marks
from laion_assets.dedup.pages import DamagedError, Pages
from laion_assets.dedup.runs import Columns, OpenRun, SortedRun, SortedRunWriter, merge

LARGEST = (1 << 64) - 1


def write(folder: Path, highs: list[int], number: int, at_once: int = 1000) -> SortedRun:
    """A run of one owner's claims; low halves are numbered."""
    with SortedRunWriter(folder, number, 0, len(highs)) as writer:
        for at in range(0, len(highs), at_once):
            high = np.array(highs[at : at + at_once], dtype=np.uint64)
            low = np.arange(at, at + len(high), dtype=np.uint64)
            writer.write(Columns(high, low, np.full(len(high), number, dtype=np.uint32)))
    return writer.run()


# Few values, so that many claims share their first half, over several pages of 204.
highs = st.lists(
    st.one_of(st.sampled_from([0, 1, 5, LARGEST - 1, LARGEST]), st.integers(0, LARGEST)),
    max_size=20,
).flatmap(
    lambda values: st.lists(st.integers(1, 250), min_size=len(values), max_size=len(values)).map(
        lambda times: sorted(
            value for value, n in zip(values, times, strict=True) for _ in range(n)
        )
    )
)


@settings(max_examples=60, deadline=None)
@given(highs, st.integers(1, 700), st.lists(st.integers(0, LARGEST), max_size=5))
def test_find_gives_all_claims_of_a_key_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, held: list[int], at_once: int, others: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    run = write(folder, held, 3, at_once)
    asked = np.array(sorted([*set(held), *others, 0, LARGEST]), dtype=np.uint64)
    with closing(OpenRun(folder, run)) as opened:
        index, found = opened.find(asked, marks(asked))
        everything = opened.between(0, 1 << 64)
    assert everything.high.tolist() == held
    assert everything.low.tolist() == list(range(len(held)))
    expected = [
        (at, low) for at, key in enumerate(asked.tolist()) for low, h in enumerate(held) if h == key
    ]
    assert list(zip(index.tolist(), found.low.tolist(), strict=True)) == expected
    assert set(found.owner.tolist()) <= {3}


@pytest.mark.parametrize("at_once", [1, 100, 10_000])
def test_merge_keeps_order_and_leaves_out_what_does_not_count(tmp_path: Path, at_once: int) -> None:
    chance = np.random.default_rng(0)
    keys = [sorted(chance.integers(0, LARGEST, 1000, dtype=np.uint64).tolist()) for _ in range(4)]
    made = [write(tmp_path, key, number) for number, key in enumerate(keys[:3])]
    made.append(write(tmp_path, [], 3))
    (tmp_path / "into").mkdir()
    counts = np.array([True, False, True, True])
    merged = merge(tmp_path, made, tmp_path / "into", counts, at_once)
    assert merged == SortedRun(newest=3, level=1, rows=2000, room=3000)
    with closing(OpenRun(tmp_path / "into", merged)) as opened:
        claims = opened.between(0, 1 << 64)
        first, rest = opened.between(0, 1 << 63), opened.between(1 << 63, 1 << 64)
    expected = sorted((high, number) for number in (0, 2) for high in keys[number])
    assert list(zip(claims.high.tolist(), claims.owner.tolist(), strict=True)) == expected
    assert [*first.high.tolist(), *rest.high.tolist()] == claims.high.tolist()


def test_the_filter_lets_few_others_pass(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    held, others = (np.sort(chance.integers(0, LARGEST, 200_000, dtype=np.uint64)) for _ in "12")
    with FilterWriter(tmp_path / "filter", len(held)) as writer:
        for some in np.array_split(held, 7):
            writer.add(some)
    assert (tmp_path / "filter").stat().st_size < 2.1 * len(held)
    with closing(Filter(tmp_path / "filter", len(held))) as opened:
        assert opened.passing(held, marks(held)).tolist() == list(range(len(held)))
        assert len(opened.passing(others, marks(others))) < 0.003 * len(others)
    with closing(Filter(tmp_path / "filter", len(held))) as opened:
        assert len(opened.passing(others[:0], marks(others[:0]))) == 0


def test_pages_are_read_wherever_they_lie(tmp_path: Path) -> None:
    run = write(tmp_path, list(range(204 * 100)), 0)
    with closing(Pages(tmp_path / f"{run.name}.claims", 100, 512)) as pages:
        for asked in ([0], [99], [3, 3, 4, 6, 20, 20, 21, 50, 99], list(range(100))):
            got, found, place = pages.take(np.array(asked))
            assert found[place].tolist() == asked
            assert got[place, 2].tolist() == [204 * number for number in asked]
            assert set(found.tolist()) <= {number + more for number in asked for more in (0, 1)}
        with pytest.raises(DamagedError, match="ends before its page 101"):
            pages.take(np.array([100]))


def test_a_flipped_byte_of_the_first_keys_never_hides_a_claim(tmp_path: Path) -> None:
    """They have no checksums: the pages prove that they were the right ones."""
    chance = np.random.default_rng(0)
    held = np.sort(chance.integers(0, LARGEST, 204 * 9 + 7, dtype=np.uint64))
    run = write(tmp_path, held.tolist(), 0)
    (tmp_path / "into").mkdir()
    path = tmp_path / f"{run.name}.first"
    content = path.read_bytes()
    outcomes: Counter[str] = Counter()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x90]) + content[at + 1 :])
        with closing(OpenRun(tmp_path, run)) as opened:
            try:
                assert opened.find(held, marks(held))[0].tolist() == list(range(len(held)))
                outcomes["found"] += 1
            except DamagedError:
                outcomes["reported"] += 1
        try:
            merged = merge(tmp_path, [run], tmp_path / "into", np.ones(1, dtype=np.bool_), 300)
            assert merged.rows == run.rows
            outcomes["merged"] += 1
        except DamagedError:
            outcomes["not merged"] += 1
    assert min(outcomes.values()) > 5
    assert len(outcomes) == 4
