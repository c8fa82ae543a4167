"""Which files a list has: folders, patterns, Spark's folders, HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from laion_assets.url_lists.files import UrlListError, find_files
from laion_assets.url_lists.options import ReadOptions
from tests.conftest import FolderServer

DATA = Path(__file__).parent / "data"


def found(*places: object, **options: object) -> list[tuple[str, str, str]]:
    """(name, format, compression) of each file."""
    files = find_files([str(place) for place in places], ReadOptions.model_validate(options))
    return [(file.name, file.format, file.compression) for file in files]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_a_folder_as_spark_writes_it() -> None:
    assert [kind for _, kind, _ in found(DATA / "spark")] == ["parquet", "parquet"]


def test_hidden_files_and_those_beside_parquet_are_left_out(tmp_path: Path) -> None:
    folder = touch(
        tmp_path,
        *("metadata/metadata_00000.parquet", "README.md", "manifest.json", "img_emb/0.npy"),
        *("_temporary/part-0.parquet", ".parts/part-1.parquet", "_SUCCESS"),
    )
    assert found(folder) == [("metadata/metadata_00000.parquet", "parquet", "none")]


def test_suffixes_and_compressions(tmp_path: Path) -> None:
    names = ["a.csv.gz", "b.TSV", "c.jsonl.zst", "d.txt", "e.pq", "f.json"]
    touch(tmp_path, *names)
    assert found(*(tmp_path / name for name in names)) == [
        ("a.csv.gz", "csv", "gzip"),
        ("b.TSV", "tsv", "none"),
        ("c.jsonl.zst", "json", "zstd"),
        ("d.txt", "txt", "none"),
        ("e.pq", "parquet", "none"),
        ("f.json", "json", "none"),
    ]


def test_patterns_and_files_named_twice(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.csv", "y/a.csv", "y/b.csv")
    assert found(tmp_path / "y" / "*.csv", tmp_path / "y" / "a.csv") == [
        ("a.csv", "csv", "none"),
        ("b.csv", "csv", "none"),
    ]
    names = ["x/a.csv", "y/a.csv", "y/b.csv"]
    assert [name for name, _, _ in found(tmp_path / "*" / "*.csv")] == names


def test_another_file_of_the_same_name_changes_no_name(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.csv", "y/b.csv")
    assert [name for name, _, _ in found(tmp_path)] == ["x/a.csv", "y/b.csv"]
    touch(tmp_path, "y/a.csv")
    assert [name for name, _, _ in found(tmp_path)] == ["x/a.csv", "y/a.csv", "y/b.csv"]
    assert [name for name, _, _ in found(tmp_path / "y", tmp_path / "x")] == [
        *("1/a.csv", "a.csv", "b.csv"),
    ]


def test_the_version_is_another_once_a_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url\n")
    (before,) = find_files([str(path)], ReadOptions())
    assert find_files([str(path)], ReadOptions()) == [before]
    path.write_text("url,text\n")
    (after,) = find_files([str(path)], ReadOptions())
    assert after.version != before.version


def test_what_reads_a_file_sees_no_pattern_in_its_name(tmp_path: Path) -> None:
    path = touch(tmp_path, "url=x/a[12]*?.csv", "url=x/a1bc.csv") / "url=x" / "a[12]*?.csv"
    (file,) = find_files([str(path)], ReadOptions())
    with file.on_disk() as link:
        assert not set(link) & set("*?[=")
        assert Path(link).samefile(path)


def test_a_web_servers_file_is_a_file(
    tmp_path: Path, serve_folder: Callable[[Path], FolderServer]
) -> None:
    # The links in it do not make it a folder.
    (tmp_path / "a.csv").write_text("url,text\nhttps://a.example/1.jpg,one\n")
    server = serve_folder(tmp_path)
    (file,) = find_files([f"{server.url}/a.csv"], ReadOptions())
    assert (file.name, file.format, file.local) == ("a.csv", "csv", False)
    with file.on_disk() as copy:
        assert Path(copy).read_bytes() == (tmp_path / "a.csv").read_bytes()
    (signed,) = find_files([f"{server.url}/a.csv?signed=a/b.gz"], ReadOptions())
    assert (signed.name, signed.format, signed.compression) == ("a.csv", "csv", "none")
    with pytest.raises(UrlListError, match=r"b\.csv does not exist"):
        find_files([f"{server.url}/b.csv"], ReadOptions())


@pytest.mark.parametrize(
    ("names", "place", "message"),
    [
        (["a.png"], ".", "there are no lists"),
        ([], "nowhere.csv", "nowhere.csv does not exist"),
        ([], "nowhere-*.csv", "there are no lists"),
        (["a.csv", "b.jsonl"], ".", "several formats .csv, json.: name the list's files"),
        (["list"], "list", "has no suffix of a list .*: name its format"),
    ],
)
def test_what_is_no_list(tmp_path: Path, names: list[str], place: str, message: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(UrlListError, match=message):
        found(tmp_path / place)


def test_a_named_format_goes_before_the_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "part-00000", "part-00001")
    assert found(tmp_path, format="csv") == [
        ("part-00000", "csv", "none"),
        ("part-00001", "csv", "none"),
    ]
