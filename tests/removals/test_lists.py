from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laion_assets.pairs.urls import image_url
from laion_assets.removals import lists
from laion_assets.removals.lists import ListError, load, load_version, parse_entry

SHA = "a" * 64
MD5 = "b" * 32


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("url:https://a.test/x.jpg", ("url", "https://a.test/x.jpg")),
        ("https://a.test/x.jpg", ("url", "https://a.test/x.jpg")),
        ("HTTPS://A.test:443/a%20b/../ü#c", ("url", "https://a.test/%C3%BC")),
        ("url:http://me:secret@bücher.example", ("url", "http://xn--bcher-kva.example/")),
        ("host: Example.ORG.", ("host", "example.org")),
        ("host:Bücher.example", ("host", "xn--bcher-kva.example")),
        ("host:xn--bcher-kva.example", ("host", "xn--bcher-kva.example")),
        ("host:%65xample。org", ("host", "example.org")),
        ("host:0x7f.1", ("host", "127.0.0.1")),
        ("host:[0:0::1]", ("host", "::1")),
        (f"sha256:{SHA.upper()}", ("sha256", SHA)),
        (SHA, ("sha256", SHA)),
        (MD5, ("md5", MD5)),
        (f"url-sha256:{SHA}", ("url-sha256", SHA)),
        (f"url-md5: {MD5.upper()}", ("url-md5", MD5)),
        ("sample-id:-9223372036854775808", ("sample-id", "-9223372036854775808")),
    ],
)
def test_entries(line: str, entry: tuple[str, str]) -> None:
    assert parse_entry(line) == entry


@pytest.mark.parametrize(
    "line",
    [
        *("", "nonsense", "sha256:xyz", "md5:" + SHA, "host:", "url:", "z" * 64),
        *("host:a b.test", "host:http://a.test", "host:a.test/x", "host:me@a.test"),
        *("host:a.test:81", "host:*.a.test", "host:.a.test", "host:a..test", "host:."),
        *("sample-id:", "sample-id:x", f"sample-id:{2**63}", "url-md5:" + SHA),
        *("url:no url", "url:ftp://a.test/x", "https://a b.test/x"),
    ],
)
def test_an_entry_that_cannot_be_understood_is_an_error(line: str) -> None:
    with pytest.raises(ListError):
        parse_entry(line)


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


def test_matching(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(
        f"host:a.test\nurl:http://b.test/1.jpg\n{SHA}\nhost:bücher.example\nhost:[::1]\n"
    )
    entries = load(tmp_path)
    assert entries.matches_url("http://a.test/x")
    assert entries.matches_url("http://img.a.test:81/x")
    assert not entries.matches_url("http://nota.test/x")
    assert entries.matches_url("http://b.test/1.jpg")
    assert not entries.matches_url("http://b.test/2.jpg")
    for url in (
        "http://xn--bcher-kva.example/x",
        "https://i.xn--bcher-kva.example./",
        "http://[::1]/",
    ):
        assert entries.matches_url(image_url(url, None, 2048))
    assert entries.matches_image(SHA, "c" * 32)
    assert not entries.matches_image("c" * 64, "c" * 32)
    assert len(entries) == 5


def test_urls_hashes_and_samples_are_found_by_the_million_as_one_by_one(tmp_path: Path) -> None:
    url = "http://h7.test/7.jpg"
    (tmp_path / "a.txt").write_text(
        "\n".join(
            [
                f"url-md5:{hashlib.md5(b'http://h1.test/1.jpg').hexdigest()}",
                f"url-sha256:{hashlib.sha256(b'http://h2.test/2.jpg').hexdigest()}",
                *("url:http://h3.test/3.jpg", "host:h4.test", f"md5:{MD5}", f"sha256:{SHA}"),
                *("sample-id:-5", "sample-id:9"),
            ]
        )
    )
    entries = load(tmp_path)
    urls = [f"http://{sub}h{i}.test/{i}.jpg" for i in range(8) for sub in ("", "x.")]
    which = entries.which_urls(urls)
    assert [entries.matches_url(url) for url in urls] == which.tolist()
    assert [url for url, named in zip(urls, which, strict=True) if named] == [
        *(f"http://h{i}.test/{i}.jpg" for i in (1, 2, 3, 4)),
        "http://x.h4.test/4.jpg",
    ]
    assert entries.which_samples(np.array([-5, 5, 9, 0])).tolist() == [True, False, True, False]
    sha256 = pa.chunked_array([["c" * 64, SHA.upper(), None], [SHA[:-1], "z" * 64]])
    md5 = pa.array([MD5, None, None, MD5, "short"])
    assert entries.which_images(sha256, md5).tolist() == [True, True, False, True, False]
    assert not entries.matches_url(url)


def test_a_list_that_has_not_changed_is_opened_and_not_read(tmp_path: Path) -> None:
    lists, cache = tmp_path / "lists", tmp_path / "cache"
    lists.mkdir()
    text = lists / "a.txt"
    text.write_text(f"host:a.test\n{SHA}\n")
    os.utime(text, (1, 1))
    first = load(lists, cache)
    compiled = next(cache.glob("*/sha256.head"))
    assert load(lists, cache).digest == first.digest

    # An edit that neither size nor time betrays, right after the list was written.
    text.write_text(f"host:b.test\n{SHA}\n")
    changed = load(lists, cache)
    assert changed.matches_url("http://b.test/")
    assert not changed.matches_url("http://a.test/")
    assert changed.without(first).key_for_url("http://b.test/")
    assert len(changed.without(first)) == 1
    known = load_version(cache, first.digest)
    assert known is not None
    assert known.matches_url("http://a.test/")
    assert compiled.exists()

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


def test_a_file_that_is_no_list_is_an_error_and_a_hidden_one_is_passed_over(tmp_path: Path) -> None:
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
    compile_ = lists._compile

    def write_meanwhile(files: Sequence[Path], out: Path) -> None:
        (folder / "mine.txt").write_text("host:b.test\n")
        compile_(files, out)

    monkeypatch.setattr(lists, "_compile", write_meanwhile)
    assert load(folder, cache).matches_url("http://b.test/")
    monkeypatch.undo()
    (folder / "mine.txt").write_text("host:a.test\n")
    assert load(folder, cache).matches_url("http://a.test/")
