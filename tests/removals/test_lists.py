from __future__ import annotations

from pathlib import Path

import pytest

from laion_assets.pairs.urls import image_url
from laion_assets.removals.lists import ListError, load, parse_entry

SHA = "a" * 64
MD5 = "b" * 32


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("url:https://a.test/x.jpg", ("url", "https://a.test/x.jpg")),
        ("https://a.test/x.jpg", ("url", "https://a.test/x.jpg")),
        ("HTTPS://A.test:443/a b/../ü#c", ("url", "https://a.test/%C3%BC")),
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
        *("url:no url", "url:ftp://a.test/x", "https://a b.test/x"),
    ],
)
def test_an_entry_that_cannot_be_understood_is_an_error(line: str) -> None:
    with pytest.raises(ListError):
        parse_entry(line)


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# a comment\nhost:a.test\nwhat is this\n")
    with pytest.raises(ListError, match=r"mine\.txt:3: 'what is this'"):
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


def test_the_digest_is_the_entries_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a.txt").write_text("host:a.test\nhost:b.test\n")
    (two / "b.txt").write_text("# comment\nhost:b.test\n")
    (two / "c.txt").write_text("host:a.test\n")
    assert load(one).digest == load(two).digest
    assert load(one).digest != load(tmp_path / "absent").digest
