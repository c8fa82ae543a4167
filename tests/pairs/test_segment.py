"""A segment's WAT files in a process pool, killed and resumed."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.funnel import StageCounts
from laion_assets.layout import SegmentKey
from laion_assets.pairs import segment
from laion_assets.pairs.extract import read_counts
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.segment import SegmentError, extract_segment
from laion_assets.tables import part_path, read_parquet
from tests.processes import alive, below, until
from tests.readers import assert_readable
from tests.wat.making import image, page, write

PLACE = {"crawl": "CC-MAIN-2021-04", "segment": "01"}
TEXT = "a photo of the old house number"


def copy(source: Path, wat_file: str, to: Path) -> None:
    shutil.copyfile(source / wat_file, to)


def refuse(source: Path, wat_file: str, to: Path) -> None:
    if wat_file in ("b/2.gz", "b/0.gz"):
        raise ConnectionError(f"no way to {wat_file}")
    copy(source, wat_file, to)


def make_source(folder: Path) -> Path:
    """Five WAT files whose pictures overlap: file i has pictures 10i to 10i+19."""
    (folder / "b").mkdir(parents=True)
    for number in range(5):
        links = [
            image(f"http://h.example/{i}.jpg", f"{TEXT} {i}")
            for i in range(10 * number, 10 * number + 20)
        ]
        links.append(links[0])
        write(folder / "b" / f"{number}.gz", page(links), b"garbage", page([image("x.gif")]))
    return folder


ROWS = 15
WATS = [f"b/{number}.gz" for number in range(5)]


def extract(  # type: ignore[no-untyped-def]
    source: Path, out: Path, wats: Sequence[str] = WATS, fetch=copy, **rules: int
) -> list[StageCounts]:
    out.mkdir(exist_ok=True)
    of_pairs = PairRules.model_validate(rules)
    return extract_segment(wats, partial(fetch, source), out, of_pairs, workers=2, **PLACE)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(autouse=True, scope="module")
def _small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "ROWS_PER_PART", ROWS)
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[StageCounts]]:
    """The segment made without interruption, and its counts."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out", extract(make_source(folder / "source"), folder / "out")


def test_first_in_file_and_row_order_is_kept(whole: tuple[Path, list[StageCounts]]) -> None:
    out, (wat, pairs) = whole
    assert sorted(contents(out)) == [f"part-{i:05d}.parquet" for i in range(3)]
    tables = [pq.read_table(path).to_pylist() for path in sorted(out.iterdir())]
    assert [len(rows) for rows in tables] == [20, 20, 20]
    numbers = [int(row["text"].split()[-1]) for rows in tables for row in rows]
    assert numbers == list(range(60))
    assert [rows[0]["wat_file"] for rows in tables] == [WATS[0], WATS[1], WATS[3]]
    of_parts = [read_counts(path) for path in sorted(out.iterdir())]
    assert [pairs.rejects["duplicate"] for _, pairs in of_parts] == [1, 22, 22]
    assert all(pairs.adds_up for _, pairs in of_parts)
    assert (wat.n_in, wat.kept, wat.rejects) == (15, 10, {"bad_record": 5})
    assert (pairs.n_in, pairs.kept) == (110, 60)
    assert pairs.rejects == {"duplicate": 45, "no_alt": 5}
    assert pairs.adds_up


def test_urls_with_many_texts_leave_in_all_files(source: Path, tmp_path: Path) -> None:
    """A logo with a text in each of the five files, one of them a duplicate: four texts."""
    for number in range(5):
        text = f"{TEXT} on a hill" if number < 2 else f"{TEXT} {number}"
        links = [image("http://h.example/logo.jpg", text)]
        links.append(image(f"http://h.example/{number}.jpg", f"{TEXT} {number}"))
        write(source / "b" / f"{number}.gz", page(links))
    out = tmp_path / "out"
    _, pairs = extract(source, out, max_texts_per_url=3)
    rows = [row for path in sorted(out.iterdir()) for row in pq.read_table(path).to_pylist()]
    assert [row["url"] for row in rows] == [f"http://h.example/{i}.jpg" for i in range(5)]
    assert (pairs.n_in, pairs.kept) == (10, 5)
    assert pairs.rejects == {"duplicate": 1, "url_many_texts": 4}
    assert pairs.adds_up


def test_a_second_call_does_nothing_and_counts_the_same(
    whole: tuple[Path, list[StageCounts]], tmp_path: Path
) -> None:
    out, counts = whole
    before = contents(out)
    assert extract(tmp_path / "gone", out) == counts
    assert contents(out) == before


def test_a_failure_names_the_file_after_the_others_are_done(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SegmentError) as failure:
        extract(source, out, fetch=refuse)
    assert str(failure.value) == (
        "2 of the 5 WAT files of CC-MAIN-2021-04|01 could not be extracted; the first is "
        "b/0.gz: ConnectionError: no way to b/0.gz"
    )
    assert sorted(contents(out / ".raw")) == [f"part-{i:05d}.parquet" for i in (1, 3, 4)]
    for done in (1, 3, 4):
        (source / "b" / f"{done}.gz").unlink()
    resumed = extract(source, out)
    assert resumed[1].kept == 60
    assert sum(pq.read_metadata(path).num_rows for path in out.iterdir()) == 60


def test_the_next_file_is_fetched_while_one_is_read(source: Path, tmp_path: Path) -> None:
    """With one worker, two fetches overlap."""
    at_once, most, lock = 0, 0, Lock()

    def fetch(source: Path, wat_file: str, to: Path) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1)
        copy(source, wat_file, to)
        with lock:
            at_once -= 1

    extract_segment(WATS, partial(fetch, source), tmp_path, PairRules(), workers=1, **PLACE)
    assert most == 2


def test_a_dead_worker_is_reported(source: Path, tmp_path: Path) -> None:
    others = {child.pid for child in multiprocessing.active_children()}

    def kill() -> None:
        """As a system without memory does."""

        def workers() -> list[Any]:
            now = multiprocessing.active_children()
            return [child for child in now if child.pid not in others]

        until(lambda: len(workers()) == 2, every_s=0.01)
        workers()[0].kill()

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(SegmentError, match="a worker process died"):
        extract(source, tmp_path / "out")
    killer.join()


def test_no_wat_files(tmp_path: Path) -> None:
    assert extract(tmp_path, tmp_path / "out", []) == [StageCounts("wat"), StageCounts("pairs")]
    (part,) = (tmp_path / "out").iterdir()
    assert pq.read_schema(part).names == schemas.PAIRS.names
    assert pq.read_metadata(part).num_rows == 0


_IMPORTS = """
import importlib, sys
from pathlib import Path
from laion_assets.pairs.extract import extract_wat
from laion_assets.pairs.rules import PairRules
from laion_assets.work import PRELOADED
for name in PRELOADED:
    importlib.import_module(name)
before = set(sys.modules)
place = {"crawl": "CC-MAIN-2021-04", "segment": "01", "wat_file": "w"}
_, pairs = extract_wat(Path(sys.argv[1]), Path(sys.argv[2]), PairRules(), **place)
print(pairs.kept, *sorted(set(sys.modules) - before))
"""


def test_a_process_imports_nothing_once_it_is_forked(source: Path, tmp_path: Path) -> None:
    """Each would do so anew: pandas alone, for pyarrow's first array, takes a quarter second."""
    command = [
        sys.executable,
        "-c",
        _IMPORTS,
        str(source / WATS[0]),
        str(tmp_path / "part.parquet"),
    ]
    assert subprocess.check_output(command, text=True).split() == ["20"]


_CHILD = """
import sys
from functools import partial
from pathlib import Path
from laion_assets.pairs import segment
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.segment import extract_segment
from tests.pairs.test_segment import PLACE, ROWS, WATS, slow_copy
segment.ROWS_PER_PART = ROWS
if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    extract_segment(
        WATS, partial(slow_copy, source), out, PairRules(), workers=2,
        **PLACE,
    )
"""


def slow_copy(source: Path, wat_file: str, to: Path) -> None:
    (source / "begun").touch()
    time.sleep(0.05)
    copy(source, wat_file, to)


def test_killed_at_any_moment_the_result_is_the_same(
    source: Path, whole: tuple[Path, list[StageCounts]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    rnd, begun, workers = random.Random(5), source / "begun", list[int]()
    for parts in (0, 1, 3, 5):
        child = subprocess.Popen(
            [sys.executable, str(script), str(source), str(out)], env=environment
        )

        def far_enough(child: subprocess.Popen[bytes], parts: int) -> bool:
            # One that had nothing left but to join may end by itself.
            return child.poll() is not None or (
                begun.exists() and len(list(out.glob("**/part-*.parquet"))) >= parts
            )

        until(partial(far_enough, child, parts), every_s=0.002)
        time.sleep(rnd.uniform(0, 0.05))
        workers += below(child.pid)
        child.kill()
        child.wait()
        begun.unlink(missing_ok=True)
        assert len(workers) >= 3, "the first time: the tracker, the server and a process"
    until(lambda: not any(map(alive, workers)), "the end of the workers")
    assert extract(source, out) == whole[1]
    assert contents(out) == contents(whole[0])


@pytest.mark.parametrize("done", [0, 2])
def test_stopped_while_the_parts_are_joined(
    source: Path,
    whole: tuple[Path, list[StageCounts]],
    tmp_path: Path,
    done: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, write_part = tmp_path / "out", segment._write_part

    def stopping(*of_part: Any) -> None:
        if len(list(out.glob("part-*"))) == done:
            (out / ".0123456789ab.part-00002.parquet").write_bytes(b"torn")
            raise KeyboardInterrupt
        write_part(*of_part)

    with monkeypatch.context() as patch:
        patch.setattr(segment, "_write_part", stopping)
        with pytest.raises(KeyboardInterrupt):
            extract(source, out)
    times = [path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))]
    for wat in WATS:
        (source / wat).unlink()
    assert extract(source, out) == whole[1]
    assert contents(out) == contents(whole[0])
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))][:done] == times


def test_parts_of_another_size_are_replaced(
    source: Path,
    whole: tuple[Path, list[StageCounts]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(segment, "ROWS_PER_PART", 1)
        extract(source, out)
    assert len(contents(out)) == 5
    (out / part_path(out, 0).name).unlink()
    assert extract(source, out) == whole[1]
    assert contents(out) == contents(whole[0])


def test_other_readers_see_each_pair_once(source: Path, tmp_path: Path) -> None:
    lake = tmp_path / "pair_parquet"
    for name in ("00", "01"):
        key = SegmentKey(PLACE["crawl"], name)
        out = lake / key.hive
        out.mkdir(parents=True)
        place = PLACE | {"segment": name}
        extract_segment(WATS, partial(copy, source), out, PairRules(), workers=2, **place)
        assert read_parquet(part_path(out, 0))["segment"].to_pylist() == [name] * 20
    assert_readable(lake, schemas.PAIRS.names, 120)
