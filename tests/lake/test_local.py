"""A lake in a folder: publishing, resuming, and what is left by runs that were killed."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from laion_assets.files import atomic_path
from laion_assets.funnel import StageCounts
from laion_assets.lake import (
    MANIFEST,
    Lake,
    LakeError,
    LakeOptions,
    LocalLake,
    NotPublishedError,
    PartitionBusyError,
    local_lake,
    open_lake,
)
from laion_assets.layout import SegmentKey
from tests.processes import until

KEY = SegmentKey("CC-MAIN-2000-05", "00")


def lake_at(path: Path, busy_timeout_s: float = 5) -> Lake:
    return open_lake(LakeOptions(root=str(path), busy_timeout_s=busy_timeout_s))


def make(lake: Lake, parts: dict[str, str], version: str = "1", **inputs: str) -> str:
    with lake.publish("pair_parquet", KEY, inputs=inputs, code_version=version) as staging:
        for name, text in parts.items():
            with atomic_path(staging.path / name) as beside:
                beside.write_text(text)
        staging.counts = [StageCounts("pairs", 3, 2, {"no_alt": 1})]
        staging.metadata = {"note": "n"}
    return staging.published.data_version


def test_a_partition_is_published_whole(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    with pytest.raises(NotPublishedError, match="pair_parquet"):
        lake.published("pair_parquet", KEY)
    make(lake, {"part-00000.parquet": "a", "sub/x.npy": "b"}, wat="v1")

    folder = lake.published("pair_parquet", KEY)
    assert folder == tmp_path / "pair_parquet/crawl=CC-MAIN-2000-05/segment=00"
    manifest = lake.manifest("pair_parquet", KEY)
    assert [item["name"] for item in manifest.files] == ["part-00000.parquet", "sub/x.npy"]
    assert manifest.bytes == 2
    assert manifest.stage("pairs").kept == 2
    assert lake.segments("pair_parquet") == [KEY]


def test_the_data_version_is_the_content(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    first = make(lake, {"part": "a"}, wat="v1")
    assert make(lake, {"part": "a"}, version="2", wat="v2") == first
    assert make(lake, {"part": "b"}, wat="v1") != first


def test_what_the_stage_has_read_back_is_not_read_again(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    with lake.publish("image_shards", KEY, inputs={}, code_version="1") as staging:
        for name in ("00000.tar", "00001.tar"):
            (staging.path / name).write_text("same")
        staging.digests = {staging.path / "00000.tar": "5" * 64}
    first, second = staging.published.files
    assert first["sha256"] == "5" * 64
    assert second["sha256"] == hashlib.sha256(b"same").hexdigest()


def test_files_that_are_not_content_do_not_change_the_data_version(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    versions = []
    for seconds in ("1", "2"):
        with lake.publish("image_shards", KEY, inputs={}, code_version="1") as staging:
            staging.not_content = ("*_stats.json",)
            (staging.path / "00000_stats.json").write_text(seconds)
            (staging.path / "00000.tar").write_text("same")
        versions.append(staging.published.data_version)
    assert versions[0] == versions[1]


def test_a_failed_run_leaves_the_old_partition_and_is_resumed(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    make(lake, {"part-0": "old"}, wat="v1")
    with (
        pytest.raises(RuntimeError, match="killed"),
        lake.publish("pair_parquet", KEY, inputs={"wat": "v2"}, code_version="1") as staging,
    ):
        (staging.path / "part-0").write_text("new")
        raise RuntimeError("killed")
    assert (lake.published("pair_parquet", KEY) / "part-0").read_text() == "old"

    with lake.publish("pair_parquet", KEY, inputs={"wat": "v2"}, code_version="1") as staging:
        assert staging.resumed
        assert (staging.path / "part-0").read_text() == "new"
    assert (lake.published("pair_parquet", KEY) / "part-0").read_text() == "new"


@pytest.mark.parametrize("changed", [{"wat": "v3"}, {"wat": "v2", "lists": "x"}])
def test_parts_of_other_inputs_are_not_resumed(tmp_path: Path, changed: dict[str, str]) -> None:
    lake = lake_at(tmp_path)
    with (
        pytest.raises(RuntimeError),
        lake.publish("pair_parquet", KEY, inputs={"wat": "v2"}, code_version="1") as staging,
    ):
        (staging.path / "part-0").write_text("of v2")
        raise RuntimeError
    with lake.publish("pair_parquet", KEY, inputs=changed, code_version="1") as staging:
        assert not staging.resumed
        assert not (staging.path / "part-0").exists()


def test_a_stage_that_judges_its_parts_itself_finds_them(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    with (
        pytest.raises(RuntimeError),
        lake.publish("image_shards", KEY, inputs={"lists": "a"}, code_version="1") as staging,
    ):
        (staging.path / "00000.tar").write_text("of a")
        raise RuntimeError
    for lists, resumed in (("b", True), ("b", False)):  # the second time it has been published
        with lake.publish(
            "image_shards",
            KEY,
            inputs={"lists": lists},
            code_version="1",
            stage_judges_parts=True,
        ) as staging:
            assert staging.resumed is resumed
            assert (staging.path / "00000.tar").exists() is resumed


def test_files_of_the_former_version_do_not_linger(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    make(lake, {"part-0": "a", "part-1": "b"}, wat="v1")
    make(lake, {"part-0": "a"}, wat="v2")
    names = {path.name for path in lake.published("pair_parquet", KEY).iterdir()}
    assert names == {"part-0", MANIFEST}


def test_temporary_files_of_a_killed_writer_are_not_published(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    make(lake, {"part-0": "a", ".abc.part-1": "torn"}, wat="v1")
    names = {path.name for path in lake.published("pair_parquet", KEY).iterdir()}
    assert names == {"part-0", MANIFEST}


def test_a_run_killed_while_its_files_are_described_goes_on_from_its_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, files = lake_at(tmp_path), {"part-0": "a", ".notes.json": "of part-0"}

    def killed(path: Path) -> str:
        raise KeyboardInterrupt(path.name)

    with monkeypatch.context() as patch:
        patch.setattr("laion_assets.lake.content.sha256_file", killed)
        with pytest.raises(KeyboardInterrupt, match="part-0"):
            make(lake, files, wat="v1")
    assert lake.unfinished("pair_parquet", KEY, ".notes.json") == b"of part-0"


def _republish(root: str, ready: str) -> None:
    lake = lake_at(Path(root))
    for number in itertools.count():
        text = str(number)
        make(lake, {f"part-{i}": text for i in range(5)}, number=text)
        Path(ready).touch()


def killed_at_any_moment(republish: Callable[[str, str], None], folder: Path) -> Iterator[None]:
    """Run ``republish(lake, ready)`` in a process that is killed, some moment after ``ready`` is
    there; yield after each kill."""
    context, ready = multiprocessing.get_context("spawn"), folder / "ready"
    for delay in (0.0, 0.003, 0.007, 0.013, 0.021):
        ready.unlink(missing_ok=True)
        process = context.Process(target=republish, args=(str(folder / "lake"), str(ready)))
        process.start()
        until(ready.exists, every_s=0.001)
        time.sleep(delay)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        yield


def test_sigkill_at_any_moment_leaves_one_whole_version(tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "lake")
    for _ in killed_at_any_moment(_republish, tmp_path):
        folder = lake.published("pair_parquet", KEY)
        found = {(folder / f"part-{i}").read_text() for i in range(5)}
        assert len(found) == 1
        assert len(lake.manifest("pair_parquet", KEY).files) == 5
    make(lake, {"part-0": "after"}, wat="v9")


def _hold(root: str, held: str) -> None:
    with lake_at(Path(root)).publish("pair_parquet", KEY, inputs={}, code_version="1"):
        Path(held).touch()
        time.sleep(60)


def test_two_processes_never_make_the_same_partition_at_once(tmp_path: Path) -> None:
    held = tmp_path / "held"
    process = multiprocessing.get_context("spawn").Process(
        target=_hold, args=(str(tmp_path / "lake"), str(held))
    )
    process.start()
    try:
        until(held.exists)
        with pytest.raises(PartitionBusyError):
            make(lake_at(tmp_path / "lake", busy_timeout_s=0.3), {"part": "a"})
    finally:
        process.kill()
        process.join()
    make(lake_at(tmp_path / "lake"), {"part": "a"})


def test_a_kill_while_publishing_loses_no_finished_part(tmp_path: Path) -> None:
    """Hashing a big partition takes long; until the exchange, its parts must be found again."""
    lake = lake_at(tmp_path)
    unreadable = tmp_path / ".staging/pair_parquet" / KEY.hive / "part-9"
    with (
        pytest.raises(FileNotFoundError),
        lake.publish("pair_parquet", KEY, inputs={}, code_version="1") as staging,
    ):
        (staging.path / "part-0").write_text("done")
        unreadable.symlink_to("nowhere")
    unreadable.unlink()
    with lake.publish("pair_parquet", KEY, inputs={}, code_version="1") as staging:
        assert staging.resumed
        assert (staging.path / "part-0").read_text() == "done"


def test_only_folders_that_nobody_works_in_are_abandoned(tmp_path: Path) -> None:
    lake, other = lake_at(tmp_path), lake_at(tmp_path)
    for asset in ("killed", "recent"):
        with (
            pytest.raises(RuntimeError, match="killed"),
            lake.publish(asset, KEY, inputs={}, code_version="1") as staging,
        ):
            raise RuntimeError("killed")
        if asset == "killed":
            os.utime(staging.path, (0, 0))
    with lake.publish("in_the_making", KEY, inputs={}, code_version="1"):
        assert [left.asset for left in other.abandoned()] == ["killed", "recent"]
        assert [left.asset for left in other.abandoned(idle_s=3600)] == ["killed"]
    for left in other.abandoned():
        with (
            pytest.raises(PartitionBusyError),
            lake_at(tmp_path, busy_timeout_s=0.1).publish(
                left.asset, KEY, inputs={}, code_version="1"
            ),
        ):
            pass


def test_a_withdrawn_partition_is_gone(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    with lake.publish("samples", inputs={}, code_version="1") as staging:
        (staging.path / "a.txt").write_text("a")
    half_deleted = tmp_path / ".staging" / "samples" / "withdrawn"
    half_deleted.mkdir()
    assert [left.folder for left in lake.abandoned()] == [half_deleted]
    lake.withdraw("samples")
    lake.withdraw("samples")
    assert not lake.has("samples")
    assert not list(lake.abandoned())
    assert not list(tmp_path.rglob("a.txt"))


def test_all_of_an_asset_is_fetched_at_once(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    with pytest.raises(NotPublishedError, match="pair_parquet has not been materialized"):
        lake.fetch_all("pair_parquet")
    make(lake, {"part-0": "a"})
    with lake.publish("catalog", inputs={}, code_version="1"):
        pass
    assert lake.fetch_all("pair_parquet") == tmp_path / "pair_parquet"
    assert lake.fetch_all("catalog") == tmp_path / "catalog"
    assert lake.assets("*") == ["catalog", "pair_parquet"]


def test_what_needs_a_folder_refuses_an_object_store_clearly(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=r"s3://bucket/x is in an object store.*laion-assets fetch"):
        local_lake(LakeOptions(root="s3://bucket/x"))
    with pytest.raises(LakeError, match=r"the lake .*nowhere does not exist"):
        local_lake(LakeOptions(root=str(tmp_path / "nowhere")))
    assert local_lake(LakeOptions(root=f"file://{tmp_path}")).root == tmp_path
    assert str(LocalLake.at(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("key", [KEY, None])
def test_a_version_changes_when_a_partition_is_replaced(
    tmp_path: Path, key: SegmentKey | None
) -> None:
    lake = LocalLake.at(tmp_path)
    seen = []
    for code in ("1", "2"):
        with lake.publish("samples", key, inputs={}, code_version=code):
            pass
        seen.append(lake.versions("samples"))
        assert lake.versions("samples") == seen[-1]
    assert set(seen[0]) == set(seen[1]) == {key}
    assert seen[0] != seen[1]
    assert lake.versions("nothing") == {}


def test_a_lake_says_when_partitions_were_published(tmp_path: Path) -> None:
    lake = LocalLake.at(tmp_path)
    keys = [SegmentKey("CC-MAIN-2021-04", "07"), SegmentKey("CC-MAIN-2013-20", "11")]
    for key in keys:
        with lake.publish("samples", key, inputs={}, code_version="1"):
            pass
        os.utime(lake.folder("samples", key) / "_manifest.json", (5, 5 + keys.index(key)))
    (tmp_path / "samples" / "crawl=CC-MAIN-2021-04" / "segment=08").mkdir()
    assert lake.published_at("samples") == {keys[1]: 6.0, keys[0]: 5.0}
    assert lake.segments("samples") == keys[::-1]
    with lake.publish("report", inputs={}, code_version="1"):
        pass
    assert list(lake.published_at("report")) == [None]
    assert lake.published_at("nothing") == {}
