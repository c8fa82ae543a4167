"""A lake on a file system that cannot exchange two folders, as NFS and CIFS."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import files
from laion_assets.files import link_or_copy, replace_folder
from laion_assets.lake import LakeError, LakeOptions, LocalLake
from tests.lake.test_local import KEY, killed_at_any_moment, make
from tests.readers import assert_readable


def lake_at(root: Path) -> LocalLake:
    return LocalLake(LakeOptions(root=str(root)), exchange=lambda *_: False)


def seen(lake: LocalLake) -> dict[str, str]:
    """What a reader finds below the asset's folder that skips links to nowhere."""
    folder = lake.folder("pair_parquet", KEY)
    found = (path for path in folder.glob("**/*") if path.is_file() and path.name[0] != "_")
    return {str(path.relative_to(folder)): path.read_text() for path in found}


ONE = {"part-0": "one", "part-1": "one", "sub/a": "one"}
TWO = {"part-0": "two", "part-2": "two", "other/b": "two"}


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    return lake_at(tmp_path / "lake")


def test_a_partition_is_replaced_whole(lake: LocalLake) -> None:
    for parts in (ONE, TWO, ONE, ONE):
        make(lake, parts, number=str(parts))
        assert seen(lake) == parts
        assert [file["name"] for file in lake.manifest("pair_parquet", KEY).files] == sorted(parts)
    versions = lake.root / ".versions/pair_parquet" / KEY.hive
    assert len(list(versions.iterdir())) == 2
    assert (versions / "current").is_symlink()
    assert not list((lake.root / "pair_parquet" / KEY.hive / "sub").glob(".*"))


def test_versions_and_segments_are_seen(lake: LocalLake) -> None:
    make(lake, ONE)
    before = lake.versions("pair_parquet")
    make(lake, TWO, wat="v2")
    assert lake.segments("pair_parquet") == [KEY]
    assert lake.versions("pair_parquet").keys() == before.keys()
    assert lake.versions("pair_parquet") != before


def test_a_partition_of_all_segments_is_replaced_and_withdrawn(lake: LocalLake) -> None:
    for text in ("a", "b"):
        with lake.publish("catalog", inputs={"x": text}, code_version="1") as staging:
            (staging.path / "catalog.txt").write_text(text)
        assert (lake.published("catalog") / "catalog.txt").read_text() == text
    lake.withdraw("catalog")
    assert not lake.has("catalog")
    assert not list(lake.root.rglob("catalog.txt"))


@pytest.mark.parametrize("first", [None, ONE])
def test_at_each_step_readers_find_the_old_or_the_new(
    lake: LocalLake, first: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if first:
        make(lake, first)
    found: list[dict[str, str]] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            found.append(seen(lake))
            return result

        return watching

    for name in ("symlink", "replace", "rename", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    make(lake, TWO, wat="v2")
    steps = [parts for parts, _ in itertools.groupby(found)]
    assert steps == [first or {}, TWO]


def test_every_reader_counts_each_row_once(lake: LocalLake) -> None:
    table = pa.table({"x": [1, 2, 3]})
    for parts in (1, 3, 2):
        with lake.publish("pair_parquet", KEY, inputs={}, code_version=str(parts)) as staging:
            for i in range(parts):
                pq.write_table(table, staging.path / f"part-{i:05d}.parquet")
        columns = ["x", "crawl", "segment"]
        assert_readable(lake.root / "pair_parquet", columns, 3 * parts)


def test_files_copied_from_elsewhere_are_taken_over(tmp_path: Path) -> None:
    make(LocalLake.at(tmp_path / "lake"), ONE)
    lake = lake_at(tmp_path / "lake")
    assert seen(lake) == ONE
    make(lake, TWO, wat="v2")
    assert seen(lake) == TWO
    # And back again.
    other = LocalLake.at(tmp_path / "lake")
    make(other, ONE, wat="v3")
    assert seen(other) == ONE
    assert not (lake.root / ".versions/pair_parquet" / KEY.hive).exists()


@pytest.mark.parametrize("with_links", [True, False])
def test_a_copied_lake_is_whole(lake: LocalLake, tmp_path: Path, with_links: bool) -> None:
    make(lake, ONE)
    shutil.copytree(lake.root, tmp_path / "copy", symlinks=with_links)
    shutil.rmtree(lake.root)
    copy = lake_at(tmp_path / "copy")
    assert seen(copy) == ONE
    make(copy, TWO, wat="v2")
    assert seen(copy) == TWO


def test_a_link_to_a_published_file_keeps_its_content(lake: LocalLake, tmp_path: Path) -> None:
    make(lake, ONE)
    link_or_copy(lake.published("pair_parquet", KEY) / "part-0", tmp_path / "kept")
    make(lake, TWO, wat="v2")
    assert (tmp_path / "kept").read_text() == "one"
    assert not (tmp_path / "kept").is_symlink()


def _republish(root: str, ready: str) -> None:
    lake = lake_at(Path(root))
    for number in itertools.count():
        text = str(number)
        make(lake, {f"part-{i}": text for i in range(3 + number % 3)}, number=text)
        Path(ready).touch()


def test_sigkill_at_any_moment_leaves_one_whole_version(tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "lake")
    for _ in killed_at_any_moment(_republish, tmp_path):
        parts = seen(lake)
        assert len(set(parts.values())) == 1
        assert sorted(parts) == [file["name"] for file in lake.manifest("pair_parquet", KEY).files]
    make(lake, {"part-0": "after"}, wat="v9")
    assert seen(lake) == {"part-0": "after"}


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("first", [None, ONE])
@pytest.mark.parametrize("step", range(14))
def test_a_kill_at_each_step_loses_no_finished_part(
    lake: LocalLake, first: dict[str, str] | None, step: int
) -> None:
    if first:
        make(lake, first)
    with pytest.MonkeyPatch.context() as patch:
        left = itertools.count(step, -1)

        def kill(call: Callable[..., Any]) -> Callable[..., Any]:
            def calls(*args: Any, **kwargs: Any) -> Any:
                if next(left) <= 0:
                    raise _KilledError
                return call(*args, **kwargs)

            return calls

        def replaced(path: Path, place: Path) -> None:
            for name in ("symlink", "replace", "rename", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, name, kill(getattr(os, name)))
            real(path, place)

        real = lake._replace
        patch.setattr(lake, "_replace", replaced)
        with contextlib.suppress(_KilledError):
            make(lake, TWO, wat="v2")
    assert seen(lake) in (first or {}, TWO)
    if seen(lake) == TWO:
        return
    with lake_at(lake.root).publish(
        "pair_parquet", KEY, inputs={"wat": "v2"}, code_version="1"
    ) as staging:
        assert staging.resumed
        assert (staging.path / "part-2").read_text() == "two"
    assert seen(lake) == TWO


def test_a_file_system_without_either_is_refused_before_the_work(
    lake: LocalLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    with (
        pytest.raises(LakeError, match="neither exchange two folders nor make a symbolic link"),
        lake.publish("pair_parquet", KEY, inputs={}, code_version="1"),
    ):
        pytest.fail("the work has begun")
    assert not list((lake.root / ".staging").glob(".trial*"))


def test_a_folder_that_is_no_partition_is_replaced_in_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(files, "_exchange", refuse)
    for text in ("a", "b"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "file").write_text(text)
        replace_folder(tmp_path / "new", tmp_path / "target")
        assert (tmp_path / "target" / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
