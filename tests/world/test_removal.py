"""`laion-assets remove --apply` on a copy of the sample world: no byte of the sample is left.

The tests look for the sample's URL, text, hashes, SAMPLE_ID, picture and vectors in the bytes of
every file, and in the decompressed content of compressed files. The lists and the removal ledger
may name an entry; that is their purpose.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import duckdb
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.cli import main
from laion_assets.defs.build import AGGREGATES, build_defs
from laion_assets.defs.internals import stale_causes
from laion_assets.defs.jobs import runnable
from laion_assets.lake import Lake, LocalLake
from laion_assets.layout import (
    DATASET_REPORT,
    IMAGE_SHARDS,
    OVER_ALL,
    SEGMENT_ASSETS,
    UNIQUE_PAIRS,
    SegmentKey,
    with_subsets,
)
from laion_assets.near_duplicates.keys import NONE, keys_of, spread
from laion_assets.removals.ledger import read_ledger
from laion_assets.settings import load_settings
from tests.lake.stores import machines, store
from tests.soak.kill_removal import CHECKOUT, COMMAND
from tests.soak.kill_removal import samples as samples_of
from tests.world.conftest import World

ALLOWED = ("removals", ".lists", "removal_ledger", "dedup_ledger")
"""Folders that may hold traces. The dedup ledger has uids of superseded claims, which are digests
of URL and text, until it merges them."""


@dataclass(frozen=True)
class Sample:
    """One row of the subset, with everything by which it could be recognised."""

    key: SegmentKey
    sample_id: int
    url: str
    text: str
    sha256: str
    md5: str
    picture: bytes
    vectors: list[bytes]
    signature: list[bytes]
    """What near-duplicates are found by, and the number of the cluster that is the sample's own."""

    @property
    def words(self) -> list[bytes]:
        """Bytes that must not occur anywhere."""
        hashes = [value.encode() for value in (self.sha256, self.md5)]
        raw = [bytes.fromhex(self.sha256), bytes.fromhex(self.md5)]
        numbers = [self.sample_id.to_bytes(8, order, signed=True) for order in ("big", "little")]
        texts = [self.url.encode(), self.text.encode(), str(self.sample_id).encode()]
        return [*texts, *hashes, *raw, *numbers, self.picture, *self.vectors, *self.signature]


def sole_rows(lake: LocalLake, key: SegmentKey) -> list[tuple[int, int]]:
    """List ``(part, row)`` of subset rows whose URL, text and image are unique in the lake."""
    alone = [
        f"{ours} in (select {theirs} from read_parquet('{lake.root}/{asset}/*/*/part-*.parquet')"
        " group by 1 having count(*) = 1)"
        for ours, asset, theirs in (
            ("URL", "pair_parquet", "url"),
            ("TEXT", "pair_parquet", "text"),
            ("sha256", "image_shards", "sha256"),
        )
    ]
    subset = f"{lake.published('filtered_subset', key)}/part-*.parquet"
    return duckdb.sql(
        "select file_number, row from (select *, file_row_number as row, "
        "cast(parse_filename(filename, true)[6:] as int) as file_number "
        f"from read_parquet('{subset}', filename = true, file_row_number = true, "
        f"hive_partitioning = false)) where {' and '.join(alone)} order by all"
    ).fetchall()


def sample_of(lake: LocalLake, key: SegmentKey, part: int, row: int) -> Sample:
    subset = lake.published("filtered_subset", key)
    values = pq.ParquetFile(subset / f"part-{part:05d}.parquet").read().slice(row, 1)
    values = values.to_pylist()[0]
    vectors = [
        np.load(subset / f"_{tower}" / f"{tower}_{part:05d}.npy")[row]
        for tower in ("img_emb", "text_emb")
    ]
    return Sample(
        key,
        values["SAMPLE_ID"],
        values["URL"],
        values["TEXT"],
        values["sha256"],
        values["md5"],
        picture_of(lake.published("image_shards", key), f"{values['key']}.jpg"),
        [part for vector in vectors for part in (vector.tobytes(), vector.astype("f4").tobytes())],
        signature_of(lake, key, values["SAMPLE_ID"]),
    )


def signature_of(lake: LocalLake, key: SegmentKey, sample_id: int) -> list[bytes]:
    folder = lake.published("near_duplicates", key)
    rows = pq.ParquetFile(folder / "part-00000.parquet").read().to_pylist()
    (number,) = (i for i, row in enumerate(rows) if row["SAMPLE_ID"] == sample_id)
    signature = np.load(folder / "_signatures.npy")[number]
    found = [signature[name].tobytes() for name in ("image", "looks", "sketch")]
    cluster = rows[number]["cluster"]
    clusters = duckdb.sql(
        f"select count(*) from read_parquet('{lake.root}/near_duplicates/*/*/part-*.parquet') "
        f"where cluster = {cluster}"
    ).fetchall()
    # Keys in the ledger of clusters, but those that a picture like it has, too.
    others = [np.load(path) for path in lake.root.glob("near_duplicates/*/*/_signatures.npy")]
    counts = Counter(np.concatenate([keys_of(one) for one in others]).ravel().tolist())
    own = Counter(keys_of(signature[None]).ravel().tolist())
    del own[int(NONE)]
    found += [key.to_bytes(8, "little") for key, n in own.items() if counts[key] == n]
    if clusters == [(1,)]:
        key = int(spread(np.array([cluster]))[0])
        found += [str(cluster).encode(), key.to_bytes(8, "little")]
        found.append(cluster.to_bytes(8, "little", signed=True))
    return found


def picture_of(shards: Path, name: str) -> bytes:
    for tar in sorted(shards.glob("_shards/*.tar")):
        with tarfile.open(tar) as archive:
            if name in archive.getnames():
                picture = archive.extractfile(name)
                assert picture
                return picture.read()
    raise KeyError(name)


def contents(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and its content in decompressed form."""
    yield path.read_bytes()
    if path.suffix in (".parquet", ".pq"):
        file = pq.ParquetFile(path)
        for column in file.read().columns:
            for chunk in column.chunks:
                plain = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
                yield b"".join(map(bytes, filter(None, plain.buffers())))
        yield repr(file.schema_arrow.metadata).encode() + repr(file.metadata.metadata).encode()
    elif path.suffix == ".duckdb":
        with duckdb.connect(str(path), read_only=True) as connection:
            yield repr(connection.sql("from duckdb_views()").fetchall()).encode()
            yield repr(connection.sql("from lake").fetchall()).encode()
    elif path.suffix == ".index":
        index = faiss.read_index(str(path))
        yield index.reconstruct_n(0, index.ntotal).tobytes()


def where(lake: LocalLake, samples: list[Sample]) -> list[set[str]]:
    """For each sample, find the files that hold a trace of it, except lists and ledgers."""
    found: list[set[str]] = [set() for _ in samples]
    for path in lake.root.rglob("*"):
        name = str(path.relative_to(lake.root))
        if path.is_file() and name.split("/")[0] not in ALLOWED:
            for content in contents(path):
                for number, sample in enumerate(samples):
                    if any(word in content for word in sample.words):
                        found[number].add(name)
    return found


def test_after_a_removal_nothing_of_the_sample_is_left(
    copy: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, key = copy.lake, copy.keys[0]
    rows = sole_rows(lake, key)
    samples = [sample_of(lake, key, *rows[i]) for i in (0, len(rows) // 2, len(rows) - 1)]
    by_url, by_hash, by_id = samples
    for files in where(lake, samples):
        assert {name.split("/")[0] for name in files} >= {*SEGMENT_ASSETS[1:-1], "search_index"}
        assert {Path(name).suffix for name in files} >= {".tar", ".parquet", ".npy", ".index"}
    left = lake.root / ".staging" / "embeddings" / "crawl=CC-MAIN-2000-10" / "segment=01"
    shutil.copytree(lake.folder("embeddings", key), left)
    others = {
        (asset, other): lake.manifest(asset, other).data_version
        for asset in SEGMENT_ASSETS
        for other in copy.keys[1:]
    }
    before = lake.manifest("filtered_subset", key).stage("subset").kept

    monkeypatch.setenv("DAGSTER_HOME", str(copy.root / "home"))
    command = ["remove", "--config", str(copy.config)]
    assert (
        main([*command, "--url", by_url.url, "--sha256", by_hash.sha256, "--reason", "asked"]) == 0
    )
    printed = capsys.readouterr().out
    assert "Nothing is taken out yet" in printed
    assert f"{key!s:22} {'filtered_subset':16} {2:>10,}" in printed
    everything = samples_of(lake)
    killed_midway([*command, "--sample-id", str(by_id.sample_id), "--apply"], lake, key)
    assert main([*command, "--apply"]) == 0
    assert "nothing that the lists name is left" in capsys.readouterr().out

    assert where(lake, samples) == [set(), set(), set()]
    for sample in samples:
        del everything[sample.sample_id]
    assert samples_of(lake) == everything
    assert not left.exists()
    assert lake.manifest("filtered_subset", key).stage("subset").kept <= before - 3
    for (asset, other), version in others.items():
        assert lake.manifest(asset, other).data_version == version, (asset, other)
    out = {(event.asset, event.entry.partition(":")[0]) for event in read_ledger(lake.root)}
    assert out >= {("pair_parquet", "url-sha256"), ("pair_parquet", "sample-id")}
    assert main([*command, "--ledger"]) == 0
    ledger = capsys.readouterr().out
    assert f"sample-id:{by_id.sample_id}" in ledger
    assert hashlib.sha256(by_hash.url.encode()).hexdigest() in ledger


def killed_midway(command: list[str], lake: LocalLake, key: SegmentKey) -> None:
    """Kill the command once it has made the second asset of the segment anew."""
    before = lake.manifest(UNIQUE_PAIRS, key).data_version
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([COMMAND, *command], stdout=subprocess.DEVNULL, env=environment) as run:
        while lake.manifest(UNIQUE_PAIRS, key).data_version == before:
            assert run.poll() is None, "it ended, and nothing has changed"
            time.sleep(0.01)
        run.kill()
    assert run.returncode == -signal.SIGKILL


def upload(lake: LocalLake, store: Lake) -> None:
    """Publish to a store what a lake in a folder has, but the report, which takes long to draw."""
    for asset in [*with_subsets(lake.assets("subset_*")), *OVER_ALL]:
        if asset == DATASET_REPORT:
            continue
        for key, manifest in lake.manifests(asset).items():
            code = manifest.code_version
            with store.publish(asset, key, inputs={}, code_version=code) as staging:
                shutil.copytree(lake.folder(asset, key), staging.path, dirs_exist_ok=True)
                staging.counts, staging.metadata = list(manifest.counts), dict(manifest.metadata)
                staging.data_version = manifest.data_version


def test_after_a_removal_nothing_is_left_in_an_object_store(
    copy: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, key = "s3://lake/removal", copy.keys[1]  # of which nothing has been taken out
    monkeypatch.setenv("DAGSTER_HOME", str(copy.root / "home"))
    with store(failing=0) as endpoint:
        machine = machines(endpoint, tmp_path, url, monkeypatch)
        upload(copy.lake, machine())
        config = tmp_path / "config.toml"
        options = {"endpoint": endpoint, "region": "us-east-1"}
        inner = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
        lake = f'root = "{url}"\ncache = "{tmp_path}/here"\nstorage_options = {{ {inner} }}'
        config.write_text(copy.config.read_text().replace(f'root = "{copy.lake.root}"', lake))
        row = sole_rows(copy.lake, key)[1]
        sample = sample_of(copy.lake, key, *row)
        uploaded = machine().store.listed("")
        # The damage of an object is not taken over, either.
        damaged = next(
            item.path
            for item in uploaded
            if item.path.startswith(f"{IMAGE_SHARDS}/{key.hive}/") and item.path.endswith(".tar")
        )
        machine().store.write(damaged, (machine().store.read(damaged) or (b"",))[0][:-1] + b"!")
        command = ["remove", "--config", str(config), "--url"]
        assert main([*command, sample.url, "--apply"]) == 0, capsys.readouterr().err
        assert "nothing that the lists name is left" in capsys.readouterr().out
        # Another one as a person does it in the UI.
        other = sample_of(copy.lake, key, *sole_rows(copy.lake, key)[2])
        assert main([*command, other.url]) == 0
        launch_as_in_the_ui(replace(copy, defs=build_defs(load_settings(config))), key)
        # All objects, whether anything names them or not, as the files that they are.
        there, objects = machine().store, tmp_path / "objects"
        for item in there.listed(""):
            there.download(item.path, objects / item.path)
        here = LocalLake.at(tmp_path / "here")
        for copied in (LocalLake.at(objects), here):
            assert where(copied, [sample, other]) == [set(), set()]
        assert machine().damaged(IMAGE_SHARDS, key) == {}
        # Of all tars, the one that held both is another object.
        tars = {item.path for item in uploaded if item.path.endswith(".tar")}
        now = {item.path for item in there.listed("") if item.path.endswith(".tar")}
        assert len(tars - now) == 1
        assert len(now - tars) <= 1


def launch_as_in_the_ui(world: World, key: SegmentKey) -> None:
    """Look for what the lists concern, and materialize what is then stale, and the aggregates."""
    assert world.run("observe_lists").success
    assets = with_subsets(world.lake.assets("subset_*"))
    while True:
        causes = stale_causes(world.instance, world.defs)
        selected = runnable(world.defs, assets, [name for name in assets if causes(name, key)])
        if not selected:
            break
        names = [dg.AssetKey(name) for name in selected]
        assert world.run("segment", str(key), asset_selection=names).success
    assert world.run("aggregates").success


def test_where_rebuilds_are_automatic_the_sensors_take_it_out_of_everything(copy: World) -> None:
    config = copy.root / "automatic.toml"
    config.write_text(f"{copy.config.read_text()}\n[removals]\nautomatic = true\n")
    defs = build_defs(load_settings(config))
    world, key = replace(copy, config=config, defs=defs), copy.keys[3]
    before = dg.evaluate_automation_conditions(defs, copy.instance).cursor
    sample = sample_of(copy.lake, key, *sole_rows(copy.lake, key)[0])
    (copy.lake.root / "removals" / "mine.txt").write_text(f"url:{sample.url}\n")
    cursor: str | None = None
    for _ in range(9):
        tick = lists_tick(world, cursor)
        cursor = tick.cursor or cursor
        for request in tick.run_requests or []:
            assert world.run(
                str(request.job_name),
                request.partition_key,
                asset_selection=request.asset_selection,
                tags=dict(request.tags),
            ).success
        if tick.skip_message == "no list has changed":
            break
    else:
        pytest.fail("the sensor never ends")
    asked = dg.evaluate_automation_conditions(defs, copy.instance, cursor=before)
    aggregates = [name for name in AGGREGATES if asked.get_num_requested(dg.AssetKey(name))]
    assert aggregates
    selected = [dg.AssetKey(name) for name in aggregates]
    assert world.run("aggregates", asset_selection=selected).success
    assert where(copy.lake, [sample]) == [set()]


def lists_tick(world: World, cursor: str | None) -> dg.SensorExecutionData:
    context = dg.build_sensor_context(
        instance=world.instance,
        instance_ref=world.instance.get_ref(),
        repository_def=world.defs.get_repository_def(),
        resources={"lake": (world.defs.resources or {})["lake"]},
        cursor=cursor,
    )
    return world.defs.get_sensor_def("lists_sensor").evaluate_tick(context)


def test_samples_whose_entry_is_deleted_come_back(copy: World) -> None:
    lake, key = copy.lake, copy.keys[0]
    (lake.root / "removals" / "requests.txt").unlink()
    remade = ("pair_parquet", "unique_pairs", "image_shards")
    before = {asset: lake.manifest(asset, key).counts[-1].kept for asset in remade}
    selected = [dg.AssetKey(asset) for asset in remade]
    assert copy.run("segment", str(key), asset_selection=selected).success
    after = {asset: lake.manifest(asset, key).counts[-1].kept for asset in remade}
    assert after == {asset: n + 3 for asset, n in before.items()}
    place = ("pair_parquet", key.crawl, key.segment)
    events = read_ledger(lake.root)
    last = [event for event in events if (event.asset, event.crawl, event.segment) == place][-3:]
    assert [event.event for event in last] == ["came_back"] * 3


def test_wrong_use_ends_with_2(copy: World, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--sha256", "xyz"], ["--host", "http://a.test/"]):
        with pytest.raises(SystemExit) as ended:
            main(["remove", "--config", str(copy.config), *arguments])
        assert ended.value.code == 2
    assert "not a sha256" in capsys.readouterr().err
