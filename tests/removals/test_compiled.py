from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from laion_assets.removals import compiled
from laion_assets.removals.compiled import load, load_version
from laion_assets.removals.entry import ListError, parse_entry

SHA = "a" * 64
MD5 = "b" * 32


def test_comments_and_what_would_list_another_url(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        b"\xef\xbb\xbfhttps://a.test/me.jpg # request 17\r\n"
        b"  # a comment\r\nhost:b.test\t# and why\r\n"
    )
    entries = load(tmp_path)
    assert len(entries) == 2
    assert entries.matches_url("https://a.test/me.jpg")
    assert entries.matches_url("https://b.test/")
    for line in ("https://a.test/me.jpg\treason", "https://a.test/x.jpg, https://b.test/y.jpg"):
        with pytest.raises(ListError, match="white space"):
            parse_entry(line)


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# a comment\nhost:a.test\nwhat is this\n")
    with pytest.raises(ListError, match=r"mine\.txt:3: 'what is this'"):
        load(tmp_path)
    (tmp_path / "mine.txt").write_text(f"{SHA}\n{MD5}\nsha256:{'g' * 64}\n{'0 ' * 16}\n")
    with pytest.raises(ListError, match=rf"mine\.txt:3: 'sha256:{'g' * 64}' is not a sha256"):
        load(tmp_path)
    (tmp_path / "mine.txt").write_text(f"{SHA}\n{'0 ' * 15}00\n")
    with pytest.raises(ListError, match=r"mine\.txt:2: "):
        load(tmp_path)
    (tmp_path / "mine.txt").write_bytes(b"host:b\xfccher.test\n")
    with pytest.raises(ListError, match=r"mine\.txt:1: not UTF-8"):
        load(tmp_path)


def test_a_list_that_has_not_changed_is_opened_and_not_read(tmp_path: Path) -> None:
    lists, cache = tmp_path / "lists", tmp_path / "cache"
    lists.mkdir()
    text = lists / "a.txt"
    text.write_text(f"host:a.test\n{SHA}\n")
    os.utime(text, (1, 1))
    first = load(lists, cache)
    column = next(cache.glob("*/sha256.head"))
    assert load(lists, cache).digest == first.digest

    # An edit that changes neither size nor time, right after the list was written.
    text.write_text(f"host:b.test\n{SHA}\n")
    changed = load(lists, cache)
    assert changed.matches_url("http://b.test/")
    assert not changed.matches_url("http://a.test/")
    assert changed.without(first).key_for_url("http://b.test/")
    assert len(changed.without(first)) == 1
    known = load_version(cache, first.digest)
    assert known is not None
    assert known.matches_url("http://a.test/")
    assert column.exists()

    text.unlink()
    assert len(load(lists, cache)) == 0


def test_the_digest_is_the_entries_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a.txt").write_text("host:a.test\nhost:b.test\n")
    (two / "b.txt").write_text("# comment\nhost:b.test\n")
    (two / "c.txt").write_text("host:a.test\n")
    assert load(one).digest == load(two).digest
    assert load(one).digest != load(tmp_path / "absent").digest


def test_a_file_that_is_not_a_list_is_an_error_and_a_hidden_one_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("host:a.test\n")
    (tmp_path / ".mine.txt.swp").write_bytes(b"\xff")
    assert len(load(tmp_path)) == 1
    (tmp_path / "more.csv").write_text("host:b.test\n")
    with pytest.raises(ListError, match=r"more\.csv is not read"):
        load(tmp_path)


def test_columns_are_never_kept_under_the_name_of_another_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = tmp_path / "lists", tmp_path / "cache"
    folder.mkdir()
    (folder / "mine.txt").write_text("host:a.test\n")
    compile_ = compiled._compile

    def write_meanwhile(files: Sequence[Path], out: Path) -> None:
        (folder / "mine.txt").write_text("host:b.test\n")
        compile_(files, out)

    monkeypatch.setattr(compiled, "_compile", write_meanwhile)
    assert load(folder, cache).matches_url("http://b.test/")
    monkeypatch.undo()
    (folder / "mine.txt").write_text("host:a.test\n")
    assert load(folder, cache).matches_url("http://a.test/")


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("absent"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_dangling, "leads nowhere"),
        (Path.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
    ],
)
def test_what_is_no_file_is_named(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "mine.txt")
    with pytest.raises(ListError, match=rf"mine\.txt .*{message}"):
        load(tmp_path)


@pytest.mark.parametrize("make", [_dangling, Path.touch])
def test_a_folder_of_lists_that_is_none_is_not_an_empty_list(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "removals")
    with pytest.raises(ListError, match="removals is"):
        load(tmp_path / "removals")
