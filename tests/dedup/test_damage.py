"""A damaged ledger is reported with what to do, and never gives a wrong answer."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from laion_assets.dedup import upkeep
from laion_assets.dedup.ledger import claimed, owners, unsettled
from laion_assets.dedup.state import LedgerError, load, open_runs
from laion_assets.layout import SegmentKey
from tests.dedup.world import CRAWL, World, uid

HELD = range(900)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A ledger with a merged run and one that is to be merged by the next claim."""
    monkeypatch.setattr(upkeep, "FAN", 2)
    world = World(tmp_path / "world")
    for number, begin in enumerate((0, 300, 600)):
        world.pairs(f"{number:02d}", [range(begin, begin + 300)])
        world.claim(f"{number:02d}")
    assert [run.level for run in load(world.ledger).runs] == [1, 0]
    world.pairs("03", [range(200, 1000)])
    return world


def flips(ledger: Path) -> Iterator[tuple[Path, int]]:
    """Bytes of each file: those of the checksum, and some that hold something."""
    rnd = random.Random(0)
    for path in sorted(ledger.glob("[!.]*")):
        content = path.read_bytes()
        full = [at for at, byte in enumerate(content) if byte]
        yield from ((path, at) for at in [0, len(content) - 1, *rnd.sample(full, 5)])


def test_a_flipped_byte_is_reported_and_never_believed(world: World, tmp_path: Path) -> None:
    high = np.array([int.from_bytes(uid(row)[:8], "big") for row in range(1000)], dtype=np.uint64)
    right = owners(world.ledger, high)
    assert [at for at, _ in right] == list(HELD)
    reports = []
    for path, at in flips(world.ledger):
        damaged = World(shutil.copytree(world.root, tmp_path / "damaged"))
        content = bytearray(path.read_bytes())
        content[at] ^= 1 << at % 8
        (damaged.ledger / path.name).write_bytes(content)
        try:
            assert owners(damaged.ledger, high) == right, (path.name, at)
        except LedgerError as error:
            reports.append(str(error))
        try:
            damaged.claim("03")
        except LedgerError as error:
            reports.append(str(error))
            shutil.rmtree(damaged.ledger)
            damaged.claim("03")
        assert damaged.kept("03") == list(range(900, 1000)), (path.name, at)
        assert sum(claimed(damaged.ledger).values()) == 1000
        shutil.rmtree(damaged.root)
    assert len(reports) > 60
    assert all(f"delete {tmp_path / 'damaged' / 'ledger'}" in report for report in reports)


@pytest.mark.parametrize("kind", ["claims", "first", "filter"])
def test_a_cut_or_missing_file_is_reported(world: World, kind: str) -> None:
    run = next(world.ledger.glob(f"*.{kind}"))
    run.write_bytes(run.read_bytes()[:-8])
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("03")
    run.unlink()
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("03")
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        owners(world.ledger, np.zeros(1, dtype=np.uint64))


def test_another_runs_files_are_reported(world: World) -> None:
    """The checksums of pages cover whose they are: a file in the place of another is damage."""
    merged, other = load(world.ledger).runs
    for kind in ("claims", "first", "filter"):
        path = world.ledger / f"{other.name}.{kind}"
        path.write_bytes(
            (world.ledger / f"{merged.name}.{kind}").read_bytes()[: len(path.read_bytes())]
        )
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("03")


def test_a_state_that_is_no_json_is_reported(world: World) -> None:
    (world.ledger / "ledger.json").write_text("{")
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("03")


def as_earlier_version(world: World) -> None:
    """Write the ledger as versions without checksums did, with the claims of 02 pending."""
    state, written = load(world.ledger), []
    for number, run in enumerate(state.runs, 100):
        with open_runs(world.ledger, [run]) as (opened,):
            claims = opened.between(0, 1 << 64)
        for column, values in claims._asdict().items():
            (world.ledger / f"run-{number:08d}.{column}").write_bytes(values.tobytes())
        written.append([f"run-{number:08d}", run.level, run.rows])
    for path in world.ledger.glob("run-*-*"):
        path.unlink()
    owners = [[*key.split("|"), *owner] for key, owner in sorted(state.owners.items())]
    digests = world.folder("02") / "_claims.json"
    pending = [owners.pop(), written.pop(), json.loads(digests.read_text())["digest"]]
    digests.rename(digests.with_name("claims.json"))
    earlier = {"next_number": 200, "owners": owners, "runs": written, "pending": pending}
    (world.ledger / "ledger.json").write_text(json.dumps(earlier))


@pytest.mark.parametrize("published", [True, False])
def test_an_earlier_versions_ledger_is_brought_up_to_date(
    world: World, caplog: pytest.LogCaptureFixture, published: bool
) -> None:
    before = claimed(world.ledger)
    as_earlier_version(world)
    if not published:
        shutil.rmtree(world.folder("02"))
    assert unsettled(world.ledger) == SegmentKey(CRAWL, "02")
    with pytest.raises(LedgerError, match="earlier version: materialize unique_pairs"):
        owners(world.ledger, np.zeros(1, dtype=np.uint64))
    with caplog.at_level("INFO"):
        world.claim("03")
    assert "its 2 sorted runs are written again" in caplog.text
    assert world.kept("03") == list(range(900 if published else 600, 1000))
    assert claimed(world.ledger).items() >= {
        (key, rows) for key, rows in before.items() if published or key.segment != "02"
    }
    assert not [path for path in world.ledger.glob("run-*") if path.stem.count("-") == 1]


def test_an_earlier_versions_cut_run_is_reported(world: World) -> None:
    as_earlier_version(world)
    run = next(world.ledger.glob("*.low"))
    run.write_bytes(run.read_bytes()[:-8])
    with pytest.raises(LedgerError, match=r"delete .*ledger"):
        world.claim("03")
