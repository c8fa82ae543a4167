from __future__ import annotations

from pathlib import Path

import pytest

from laion_assets.removals.lists import ListError, load, parse_entry

SHA = "a" * 64
MD5 = "b" * 32


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("url:https://a.test/x.jpg", ("url", "https://a.test/x.jpg")),
        ("https://a.test/x.jpg", ("url", "https://a.test/x.jpg")),
        ("host: Example.ORG.", ("host", "example.org")),
        (f"sha256:{SHA.upper()}", ("sha256", SHA)),
        (SHA, ("sha256", SHA)),
        (MD5, ("md5", MD5)),
    ],
)
def test_entries(line: str, entry: tuple[str, str]) -> None:
    assert parse_entry(line) == entry


@pytest.mark.parametrize("line", ["", "nonsense", "sha256:xyz", "md5:" + SHA, "host:", "z" * 64])
def test_an_entry_that_cannot_be_understood_is_an_error(line: str) -> None:
    with pytest.raises(ListError):
        parse_entry(line)


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# a comment\nhost:a.test\nwhat is this\n")
    with pytest.raises(ListError, match=r"mine\.txt:3: 'what is this'"):
        load(tmp_path)


def test_matching(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"host:a.test\nurl:http://b.test/1.jpg\n{SHA}\n")
    entries = load(tmp_path)
    assert entries.matches_url("http://a.test/x")
    assert entries.matches_url("http://img.a.test:81/x")
    assert not entries.matches_url("http://nota.test/x")
    assert entries.matches_url("http://b.test/1.jpg")
    assert not entries.matches_url("http://b.test/2.jpg")
    assert entries.matches_image(SHA, "c" * 32)
    assert not entries.matches_image("c" * 64, "c" * 32)
    assert len(entries) == 3


def test_the_digest_is_the_entries_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a.txt").write_text("host:a.test\nhost:b.test\n")
    (two / "b.txt").write_text("# comment\nhost:b.test\n")
    (two / "c.txt").write_text("host:a.test\n")
    assert load(one).digest == load(two).digest
    assert load(one).digest != load(tmp_path / "absent").digest
