"""A lake in an object store: an S3-compatible server on loopback; a machine is a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.dedup.ledger import claimed, claiming, unsettled
from laion_assets.lake import (
    Lake,
    Manifest,
    NotPublishedError,
    PartitionBusyError,
)
from laion_assets.layout import SegmentKey
from laion_assets.lookup.find import Partitions
from laion_assets.lookup.write import write_lookups
from laion_assets.pairs.extract import PairWriter
from laion_assets.removals.active import FOLDERS, note_resolved, read_lists, resolved_file
from laion_assets.removals.entries import Entries
from laion_assets.removals.entry import Key
from laion_assets.schemas import PAIRS, sample_id_of, uid_of
from laion_assets.stats.question import ask
from laion_assets.tables import part_path, write_table
from tests.lake.stores import KEY, OTHER, Machine, machines, made, store
from tests.processes import until


def test_one_machine_publishes_and_another_reads(machine: Machine) -> None:
    here, there = machine(), machine()
    with pytest.raises(NotPublishedError, match=r"pairs of CC-MAIN-2000-05\|00"):
        there.manifest("pairs", KEY)
    first = made(here, "one")
    assert there.manifest("pairs", KEY) == first
    assert there.segments("pairs") == [KEY]
    ended = datetime.fromisoformat(first.started).timestamp() + first.seconds
    ((key, at),) = there.published_at("pairs").items()
    assert key == KEY
    assert at == pytest.approx(ended, abs=30), "by the store's clock, in whole seconds"
    assert there.published_at("nothing") == {}
    assert there.assets("pair*") == ["pairs"]
    assert (there.published("pairs", KEY) / "deep" / "a.txt").read_text() == "one"
    assert Manifest.read(there.folder("pairs", KEY)) == first
    made(here, "two")
    assert (there.folder("pairs", KEY) / "deep" / "a.txt").read_text() == "two"
    left = [item.path for item in there.store.listed("pairs")]
    assert len(left) == 2, "the objects of the first publication are gone"


def test_a_look_up_copies_nothing(machine: Machine) -> None:
    here, there = machine(), machine()
    uid = uid_of("http://a.test/1.jpg", "text")
    with here.publish("pair_parquet", KEY, inputs={}, code_version="1") as staging:
        rows = pa.Table.from_pylist([{"uid": uid, "url": "http://a.test/1.jpg"}], PAIRS)
        write_table(part_path(staging.path, 0), rows)
        write_lookups("pair_parquet", staging.path)
    for text, found in ((str(sample_id_of(uid)), {KEY: [0]}), ("1", {})):
        sought = ask(text).sought("pair_parquet")
        held, without = Partitions(there).candidates("pair_parquet", sought)
        assert ({key: rows.tolist() for key, rows in held.items()}, without) == (found, [])
    assert not (there.local_root / "pair_parquet").exists()


def test_files_are_fetched_as_they_are_asked_for(machine: Machine) -> None:
    here, there = machine(), machine()
    made(here, "one")
    there.fetch("pairs", KEY, "same*")
    place = there.local_root / "pairs" / KEY.hive
    assert not (place / "deep").exists()
    assert there.folder("pairs", KEY) == place
    assert (place / "deep" / "a.txt").read_text() == "one"


def test_of_two_machines_that_make_the_same_one_publishes(machine: Machine) -> None:
    slow, quick = machine(), machine()
    with (
        pytest.raises(PartitionBusyError, match="made by another machine meanwhile"),
        slow.publish("pairs", KEY, inputs={"from": "slow"}, code_version="1") as staging,
    ):
        (staging.path / "a.txt").write_text("slow")
        first = made(quick, "quick")
    assert machine().manifest("pairs", KEY) == first
    assert (slow.folder("pairs", KEY) / "deep" / "a.txt").read_text() == "quick"
    assert len(quick.store.listed("pairs")) == 2, "what was not published is gone"


def test_a_lost_machines_parts_are_taken_over(machine: Machine) -> None:
    lost, other = machine(), machine()
    with (
        pytest.raises(ZeroDivisionError),
        lost.publish("pairs", KEY, inputs={"a": "1"}, code_version="1") as staging,
    ):
        (staging.path / "part-0.txt").write_text("half of the work")
        (staging.path / ".part-1.txt").write_text("torn")
        (staging.path / ".raw").mkdir()
        (staging.path / ".raw" / "unit-0.txt").write_text("a third")
        (staging.path / ".raw" / ".unit-1.txt").write_text("torn")
        until(lambda: bool(lost.store.listed("_staging")))
        raise ZeroDivisionError
    assert other.unfinished("pairs", KEY, "part-0.txt") == b"half of the work"
    assert other.unfinished("pairs", KEY, "part-1.txt") is None
    assert other.unfinished("pairs", OTHER, "part-0.txt") is None
    with other.publish("pairs", KEY, inputs={"a": "1"}, code_version="1") as staging:
        assert staging.resumed
        assert sorted(path.name for path in staging.path.rglob("*.txt")) == [
            *("part-0.txt", "unit-0.txt")
        ]
    assert (machine().folder("pairs", KEY) / "part-0.txt").read_text() == "half of the work"
    assert not other.store.listed("_staging")
    with other.publish("pairs", KEY, inputs={"a": "2"}, code_version="1") as staging:
        assert not staging.resumed


def pairs(folder: Path, *uids: int) -> Path:
    """Write a segment's pairs, given by their numbers, to a folder."""
    folder.mkdir(parents=True)
    table = PAIRS.empty_table().to_pydict()
    for uid in uids:
        row = {"uid": uid.to_bytes(16, "big"), "url": f"http://a.test/{uid}", "text": f"text {uid}"}
        for name in PAIRS.names:
            table[name].append(row.get(name, 0.0 if name == "language_score" else ""))
    with PairWriter(folder / "part-00000.parquet") as writer:
        writer.write(pa.table(table, PAIRS))
    return folder


@contextmanager
def claims(lake: Lake, key: SegmentKey, source: Path) -> Iterator[None]:
    """Claim a segment's pairs as the asset does; the block runs before they are published."""
    with (
        lake.lease("dedup_ledger", "unique_pairs", unsettled) as lease,
        claiming(lease.folder, lease.partitions, key) as claim,
        lake.publish("unique_pairs", key, inputs={}, code_version="1") as staging,
    ):
        claim.write(source, staging.path, removals=Entries(), blocklists=Entries())
        lease.save()
        yield


def kept(lake: Lake, key: SegmentKey) -> list[int]:
    table = pq.ParquetFile(lake.published("unique_pairs", key) / "part-00000.parquet").read()
    return [int.from_bytes(uid, "big") for uid in table["uid"].to_pylist()]


def test_claims_hold_on_all_machines(machine: Machine, tmp_path: Path) -> None:
    here, there = machine(), machine()
    with claims(here, KEY, pairs(tmp_path / "first", 1, 2, 3)):
        pass
    with claims(there, OTHER, pairs(tmp_path / "second", 2, 3, 4)):
        pass
    third = machine()
    assert (kept(third, KEY), kept(third, OTHER)) == ([1, 2, 3], [4])
    with claims(third, KEY, pairs(tmp_path / "again", 1, 4, 5)):
        pass
    assert kept(third, KEY) == [1, 5]
    assert claimed(third.local_root / "dedup_ledger") == {KEY: 2, OTHER: 1}


def test_a_machine_taken_for_dead_publishes_no_claims(machine: Machine, tmp_path: Path) -> None:
    orphan, other = machine(), machine()
    with (
        pytest.raises(PartitionBusyError, match="taken for dead"),
        claims(orphan, KEY, pairs(tmp_path / "first", 1, 2)),
        claims(other, OTHER, pairs(tmp_path / "second", 2, 3)),
    ):
        pass
    third = machine()
    assert kept(third, OTHER) == [2, 3]
    assert not third.has("unique_pairs", KEY)
    with claims(third, KEY, pairs(tmp_path / "again", 1, 2)):
        pass
    assert kept(third, KEY) == [1]


def test_a_failed_lease_is_not_waited_for(machine: Machine, tmp_path: Path) -> None:
    failing, other = machine(), machine()
    other.busy_timeout_s = 600
    with (
        pytest.raises(ZeroDivisionError),
        claims(failing, KEY, pairs(tmp_path / "first", 1, 2)),
    ):
        raise ZeroDivisionError
    with claims(other, OTHER, pairs(tmp_path / "second", 2)):
        pass
    assert kept(other, OTHER) == [2]


def test_a_lost_ledger_is_made_of_the_partitions(machine: Machine, tmp_path: Path) -> None:
    here, there = machine(), machine()
    with claims(here, KEY, pairs(tmp_path / "first", 1, 2)):
        pass
    here.store.delete(["_index/dedup_ledger.json"])
    with claims(there, OTHER, pairs(tmp_path / "second", 2, 3)):
        pass
    assert kept(there, OTHER) == [3]


def test_lists_are_read_and_what_is_met_is_noted_by_all(machine: Machine) -> None:
    here, there = machine(), machine()
    here.store.write("removals/mine.txt", b"host:bad.test\n")
    assert len(read_lists(here.current(*FOLDERS)).removals) == 1
    here.store.write("blocklists/theirs.txt", f"sha256:{'0' * 64}\nsha256:{'1' * 64}\n".encode())
    for lake, digit in ((here, 0), (there, 1)):
        met = [(Key("sha256", bytes([digit * 17]) * 32), bytes([digit]) * 32)]
        file = resolved_file("blocklists")
        assert lake.update(file, partial(note_resolved, name="blocklists", resolved=met))
    lists = read_lists(machine().current(*FOLDERS))
    assert len(lists.blocklists) == 4, "two hashes, and the URLs at which they were met"
    here.store.delete(["removals/mine.txt"])
    assert not len(read_lists(here.current(*FOLDERS)).removals)


def test_a_partition_is_withdrawn_from_all_machines(machine: Machine) -> None:
    here, there = machine(), machine()
    with here.publish("samples", inputs={}, code_version="1") as staging:
        (staging.path / "a.txt").write_text("a")
    assert (there.fetch_all("samples") / "a.txt").exists()
    with (
        pytest.raises(PartitionBusyError, match="made by another machine meanwhile"),
        here.publish("samples", inputs={}, code_version="2"),
    ):
        there.withdraw("samples")
    assert not here.store.listed("samples")
    for lake in (here, there):
        assert not lake.has("samples")
        assert not lake.folder("samples").exists()
    there.withdraw("samples")
    with here.publish("samples", inputs={}, code_version="3"):
        pass
    assert there.has("samples")


def test_a_store_that_fails_often_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        endpoint = stack.enter_context(store(failing=0.2))
        machine = machines(endpoint, tmp_path, "s3://lake/unreliable", monkeypatch)
        here, there = machine(), machine()
        for number in range(4):
            made(here, str(number))
            assert (there.folder("pairs", KEY) / "deep" / "a.txt").read_text() == str(number)
        with claims(here, KEY, pairs(tmp_path / "first", 1, 2, 3)):
            pass
        with claims(there, OTHER, pairs(tmp_path / "second", 2, 3, 4)):
            pass
        assert (kept(there, KEY), kept(here, OTHER)) == ([1, 2, 3], [4])
