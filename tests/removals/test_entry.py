from __future__ import annotations

import pytest

from laion_assets.removals.entry import Key, ListError, host_key, key_of, parse_entry

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
        ("host:.COM", ("host", ".com")),
        ("host: .co.uk.", ("host", ".co.uk")),
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


@pytest.mark.parametrize("suffix", ["com", "Com.", "xn--p1ai", "co.uk", "com.br"])
def test_a_host_that_names_a_part_of_the_web_is_asked_about(suffix: str) -> None:
    with pytest.raises(ListError, match=r"write host:\.") as refused:
        parse_entry(f"host:{suffix}")
    named = str(refused.value).partition("write ")[2].partition(" if")[0]
    assert parse_entry(named) == ("host", named.removeprefix("host:"))


def test_its_key_covers_the_hosts_under_it() -> None:
    assert key_of(*parse_entry("host:.com")) == Key("host", host_key("com"))
