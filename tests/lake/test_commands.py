"""Commands on a lake in an object store."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from laion_assets.lake import Lake, LocalLake
from laion_assets.layout import (
    CATALOG,
    EVERY_HIVE,
    FILTERED_SUBSET,
    PAIR_PARQUET,
    SEARCH_INDEX,
    SEGMENT_ASSETS,
    SegmentKey,
    place_of,
)
from laion_assets.lookup.write import FILES, write_lookups
from laion_assets.removals.entry import Key
from laion_assets.removals.ledger import RemovalCounts, events_file, note_removals
from laion_assets.stats.catalog import build_catalog
from laion_assets.stats.why import why
from laion_assets.tables import part_path, read_parquet, write_table
from tests.cli.conftest import laion_assets, refused
from tests.lake.stores import KEY, OTHER, Machine, made
from tests.release.conftest import ABOUT, make_lake
from tests.stats.conftest import HOSTS, SEGMENTS, SegmentFiles, hash_of


@pytest.fixture
def config(machine: Machine, endpoint: str, tmp_path: Path) -> Path:
    """Settings of a machine that only runs commands."""
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[lake]\nroot = "{machine().store.url}"\ncache = "{tmp_path}/reader"\n'
        f'storage_options = {{ endpoint = "{endpoint}", region = "us-east-1" }}\n'
    )
    return path


def put(lake: LocalLake, store: Lake) -> None:
    """Publish to a store what a lake in a folder has, with or without a manifest."""
    order = [*SEGMENT_ASSETS, *lake.assets("*")]  # what is made of others comes after them
    manifests = {
        asset: lake.manifests(asset) for asset in sorted(lake.assets("*"), key=order.index)
    }
    for asset, of in manifests.items():
        keys = map(SegmentKey.of_folder, (lake.root / asset).glob(EVERY_HIVE))
        for key in sorted(keys) or [None]:
            code = of[key].code_version if key in of else "1"
            with store.publish(asset, key, inputs={}, code_version=code) as staging:
                shutil.copytree(lake.root / place_of(asset, key), staging.path, dirs_exist_ok=True)
                if key in of:
                    staging.counts, staging.metadata = list(of[key].counts), dict(of[key].metadata)
                    staging.data_version = of[key].data_version


def test_fetch_copies_what_is_asked_for(machine: Machine, config: Path, tmp_path: Path) -> None:
    made(machine(), "one")
    done = laion_assets("fetch", "pairs", "--names", "same*", "--config", config)
    assert (done.code, done.out) == (0, f"pairs: {tmp_path}/reader/pairs\n")
    assert [path.name for path in (tmp_path / "reader").rglob("*.txt")] == ["same.txt"]
    refused(
        laion_assets("fetch", "nothing", "--config", config),
        "there is no asset nothing; known: wat_manifest, ",
    )
    refused(
        laion_assets("fetch", "catalog", "--config", config), "catalog has not been materialized"
    )


def test_samples_are_removed_by_command(machine: Machine, config: Path) -> None:
    here = machine()
    words = ("remove", "--config", config, "--url", "https://a.test/me.jpg", "--reason", "17")
    done = laion_assets(*words)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "added  url:https://a.test/me.jpg"
    got = here.store.read("removals/requests.txt")
    assert got
    assert got[0].decode().splitlines()[1:] == ["url:https://a.test/me.jpg"]
    assert "added" not in laion_assets(*words).out
    assert laion_assets(*words[:3], "--md5", "0" * 32).code == 0
    got = here.store.read("removals/requests.txt")
    assert got
    assert got[0].decode().count(f"md5:{'0' * 32}") == 1


def test_the_removal_ledger_is_everybodys(machine: Machine, config: Path) -> None:
    taken = RemovalCounts({("removals", Key("md5", bytes(16))): 3})
    for number, key in enumerate((KEY, OTHER)):
        note = partial(
            note_removals,
            asset=PAIR_PARQUET,
            key=key,
            removed=taken,
            run_id=f"run{number}",
            returns=False,
        )
        machine().update(events_file(PAIR_PARQUET, key), note)
    done = laion_assets("remove", "--ledger", "--config", config)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[-1] for line in lines] == ["run0", "run1"]
    assert f"{KEY}" in lines[0]


@pytest.fixture
def segments(machine: Machine, tmp_path: Path) -> list[SegmentFiles]:
    """Three segments with look-ups, in the folder ``lake`` and in the store."""
    made = [SegmentFiles(tmp_path / "lake", *segment) for segment in SEGMENTS]
    for segment in made:
        segment.write()
        segment.tar()
        for asset in FILES:
            write_lookups(asset, segment.folder(asset))
    put(LocalLake.at(tmp_path / "lake"), machine())
    return made


def test_a_pair_is_explained_from_a_store(
    segments: list[SegmentFiles], machine: Machine, config: Path
) -> None:
    there, url = machine(), segments[1].pairs[3]["url"]
    (ours,), (theirs,) = (
        why(lake, url).stories for lake in (LocalLake.at(segments[0].lake), there)
    )
    assert [(step.stage, step.verdict, step.detail) for step in theirs.steps] == [
        (step.stage, step.verdict, step.detail) for step in ours.steps
    ]
    copied = {path.parent.name for path in there.local_root.rglob("part-*.parquet")}
    assert copied == {f"segment={segments[1].segment}"}
    assert not list(there.local_root.rglob("*.tar"))
    assert not list(there.local_root.glob("*/*/*/_lookup")), "of look-ups, ranges are read"
    done = laion_assets("why", "--config", config, url)
    assert (done.code, done.out.splitlines()[0]) == (0, url)
    refused(laion_assets("why", "--config", config, "http://nothing.test/"), "nothing is known of")


def test_sql_reads_a_store_in_place(
    segments: list[SegmentFiles], machine: Machine, config: Path, tmp_path: Path
) -> None:
    here = machine()
    with here.publish("catalog", inputs={}, code_version="1") as staging:
        build_catalog(here, staging.path / "catalog.duckdb")
    first, last = segments[0], segments[-1]
    questions = {
        "select count(*) from subset": 3 * 24,
        f"select max(URL) from subset where crawl = '{first.crawl}' and segment = '00'": max(
            row["url"] for row in first.pairs[:24]
        ),
        "select count(distinct segment || crawl) from pairs where length(text) > 5": 3,
    }
    for sql, answer in questions.items():
        done = laion_assets("sql", "--config", config, "--json", sql)
        assert done.code == 0, done.err
        assert [list(row.values()) for row in json.loads(done.out)] == [[answer]]
    assert not list((tmp_path / "reader").rglob("*.parquet"))
    key = SegmentKey(last.crawl, last.segment)
    with here.publish(FILTERED_SUBSET, key, inputs={}, code_version="2") as staging:
        table = read_parquet(here.folder(FILTERED_SUBSET, key) / "part-00000.parquet")
        write_table(staging.path / "part-00000.parquet", table.slice(0, 5))
    done = laion_assets("sql", "--config", config, "--json", "select count(*) as n from subset")
    assert json.loads(done.out) == [{"n": 53}], "the replaced partition is seen"


def test_listed_samples_are_found_in_a_store(
    segments: list[SegmentFiles], config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder.toml"
    folder.write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')
    entries = ["--url", segments[1].pairs[3]["url"], "--sha256", hash_of(5), "--host", HOSTS[0]]
    ours, theirs = (
        laion_assets("remove", "--config", settings, *entries) for settings in (folder, config)
    )
    assert theirs.out == ours.out
    assert "filtered_subset" in ours.out


def test_a_release_is_exported_as_from_a_folder(
    machine: Machine, config: Path, tmp_path: Path
) -> None:
    lake = make_lake(tmp_path / "lake")
    put(lake, machine())
    folder = tmp_path / "folder.toml"
    folder.write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')
    for name, settings in (("theirs", config), ("ours", folder)):
        words = ("export", "--config", settings, "-o", tmp_path / name, "--without-indices")
        done = laion_assets(*words, "--files", 3, "--name", ABOUT.name)
        assert done.code == 0, done.err
        verified = laion_assets("export", "--verify", "--config", settings, "-o", tmp_path / name)
        assert verified.code == 0, verified.err
    ours, theirs = (sorted((tmp_path / name).rglob("*.*")) for name in ("ours", "theirs"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one.suffix in (".parquet", ".npy"):
            assert one.read_bytes() == other.read_bytes()


def test_a_question_to_a_store_is_answered_as_from_a_folder(
    machine: Machine, config: Path, tmp_path: Path
) -> None:
    lake = make_lake(tmp_path / "lake")
    put(lake, machine())
    store = machine()
    with store.publish(CATALOG, inputs={}, code_version="2") as staging:
        build_catalog(store, staging.path / "catalog.duckdb")
    assert not list(store.local_root.rglob("part-00001.parquet")), "it reads one file of each table"
    folder = tmp_path / "folder.toml"
    folder.write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')

    def ask(settings: Path, sql: str) -> list[dict[str, object]]:
        answer = laion_assets("sql", "--config", settings, "--json", sql)
        assert answer.code == 0, answer.err
        rows: list[dict[str, object]] = json.loads(answer.out)
        return rows

    for sql in (
        "select crawl, segment, count(*) as n from images group by all order by all",
        "from resolution_table()",
        "from funnel()",
        "select * from subset where crawl = 'CC-MAIN-2001-05' order by SAMPLE_ID",
        "select stage, sum(n) as n from stats group by all order by all",
    ):
        assert ask(config, sql) == ask(folder, sql)
    path = "lake://store/pair_parquet/**/*.parquet"
    assert ask(config, f"select count(*) as n from '{path}'") == [{"n": 180}]
    done = laion_assets("sql", "--config", config, "from read_text('/etc/passwd')")
    assert (done.code, done.out) == (1, "")
    assert "Permission Error" in done.err
    first, second = (SegmentKey(*segment) for segment in SEGMENTS[:2])
    part = part_path(lake.folder(FILTERED_SUBSET, second), 0)
    with store.publish(FILTERED_SUBSET, first, inputs={}, code_version="2") as replaced:
        for number in range(2):
            shutil.copyfile(part, part_path(replaced.path, number))
    sql = "select count(*) as n, count(WIDTH) as m from subset"
    assert ask(config, sql) == [{"n": 96, "m": 96}]


def test_what_is_served_is_copied_first(machine: Machine, config: Path, tmp_path: Path) -> None:
    here = machine()
    refused(laion_assets("serve", "--config", config), "search_index has not been materialized")
    made(here, "subset", asset=FILTERED_SUBSET)
    with here.publish(SEARCH_INDEX, inputs={}, code_version="1") as staging:
        (staging.path / "index.json").write_text("no index")
    done = laion_assets("serve", "--config", config)
    assert done.code == 1
    assert f"{tmp_path}/reader/search_index cannot be searched" in done.err
    assert (tmp_path / "reader" / SEARCH_INDEX / "index.json").exists()
    assert (tmp_path / "reader" / FILTERED_SUBSET / KEY.hive / "same.txt").exists()
