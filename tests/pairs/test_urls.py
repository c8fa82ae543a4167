"""Image URLs come out as a browser would request them."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laion_assets.pairs import urls
from laion_assets.pairs.urls import Base, UrlRefusedError, base_url, image_url, image_urls
from laion_assets.removals.entry import parse_entry

PAGE = "https://www.example.org/shop/items/page.html?q=1#top"

# Expected values follow the WHATWG URL Standard's parser, step by step.
CASES = [
    ("photo.jpg", "https://www.example.org/shop/items/photo.jpg"),
    ("./photo.jpg", "https://www.example.org/shop/items/photo.jpg"),
    ("../photo.jpg", "https://www.example.org/shop/photo.jpg"),
    ("../../photo.jpg", "https://www.example.org/photo.jpg"),
    ("../../../../photo.jpg", "https://www.example.org/photo.jpg"),
    ("/photo.jpg", "https://www.example.org/photo.jpg"),
    ("//cdn.example.net/a.jpg", "https://cdn.example.net/a.jpg"),
    ("?x=1", "https://www.example.org/shop/items/page.html?x=1"),
    ("#frag", "https://www.example.org/shop/items/page.html?q=1"),
    ("a.jpg#frag", "https://www.example.org/shop/items/a.jpg"),
    ("a.jpg?x=1#frag", "https://www.example.org/shop/items/a.jpg?x=1"),
    ("HTTP://EXAMPLE.ORG/A.JPG", "http://example.org/A.JPG"),
    ("http://example.org", "http://example.org/"),
    ("http://example.org:80/a.jpg", "http://example.org/a.jpg"),
    ("https://example.org:443/a.jpg", "https://example.org/a.jpg"),
    ("http://example.org:8080/a.jpg", "http://example.org:8080/a.jpg"),
    ("http://example.org:99999/a.jpg", "bad_url"),
    ("http://example.org:/a.jpg", "http://example.org/a.jpg"),
    ("https://example.org/a b.jpg", "https://example.org/a%20b.jpg"),
    ("https://example.org/ä/日本.jpg", "https://example.org/%C3%A4/%E6%97%A5%E6%9C%AC.jpg"),
    ("https://example.org/?q=ä b", "https://example.org/?q=%C3%A4%20b"),
    ("https://bücher.example/a.jpg", "https://xn--bcher-kva.example/a.jpg"),
    ("https://XN--BCHER-KVA.example/a.jpg", "https://xn--bcher-kva.example/a.jpg"),
    ("https://example.org/%7Efoo/%e4.jpg", "https://example.org/%7Efoo/%e4.jpg"),
    ("https://example.org/100%.jpg", "https://example.org/100%.jpg"),
    ("https://example.org/a%2fb.jpg", "https://example.org/a%2fb.jpg"),
    ("https://example.org/a/%2e%2e/b.jpg", "https://example.org/b.jpg"),
    ("https://example.org/a/./b/../c.jpg", "https://example.org/a/c.jpg"),
    ("https:\\\\example.org\\a\\b.jpg", "https://example.org/a/b.jpg"),
    ("\\img\\a.jpg", "https://www.example.org/img/a.jpg"),
    ("..\\a.jpg", "https://www.example.org/shop/a.jpg"),
    ("\\\\cdn.example.net\\a.jpg", "https://cdn.example.net/a.jpg"),
    ("https:/example.org/a.jpg", "https://www.example.org/example.org/a.jpg"),
    ("https:example.org/a.jpg", "https://www.example.org/shop/items/example.org/a.jpg"),
    ("https:a.jpg", "https://www.example.org/shop/items/a.jpg"),
    ("http:a.jpg", "http://a.jpg/"),
    ("https:///example.org/a.jpg", "https://example.org/a.jpg"),
    ("https://user:pw@example.org/a.jpg", "bad_url"),
    ("https://user@example.org/a.jpg", "bad_url"),
    ("https://@example.org/a.jpg", "https://example.org/a.jpg"),
    ("https://example.org/@user/a.jpg", "https://example.org/@user/a.jpg"),
    ("https://example.org/a.jpg?u=a@b", "https://example.org/a.jpg?u=a@b"),
    ("http://", "bad_url"),
    ("https://?a", "bad_url"),
    ("http://#", "bad_url"),
    ("http://exa mple.org/a.jpg", "bad_url"),
    ("http://exa<mple.org/a.jpg", "bad_url"),
    ("http://[::1]/a.jpg", "http://[::1]/a.jpg"),
    ("http://[::1/a.jpg", "bad_url"),
    ("http://192.0.2.1/a.jpg", "http://192.0.2.1/a.jpg"),
    ("http://0xC0000201/a.jpg", "http://192.0.2.1/a.jpg"),
    ("http://3221225985/a.jpg", "http://192.0.2.1/a.jpg"),
    ("http://256.256.256.256/a.jpg", "bad_url"),
    ("http://1.2.3.4.5/a.jpg", "bad_url"),
    ("http://example.org./a.jpg", "http://example.org./a.jpg"),
    ("http://example..org/a.jpg", "http://example..org/a.jpg"),
    ("http://ex%41mple.org/a.jpg", "http://example.org/a.jpg"),
    ("http://ｅｘａｍｐｌｅ.org/a.jpg", "http://example.org/a.jpg"),
    ("http://a_b.example.org/a.jpg", "http://a_b.example.org/a.jpg"),
    ("data:image/png;base64,AAAA", "url_scheme"),
    ("javascript:void(0)", "url_scheme"),
    ("JavaScript:alert(1)", "url_scheme"),
    ("java\tscript:alert(1)", "url_scheme"),
    ("file:///etc/passwd", "url_scheme"),
    ("ftp://example.org/a.jpg", "url_scheme"),
    ("blob:https://example.org/uuid", "url_scheme"),
    ("about:blank", "url_scheme"),
    ("mailto:a@example.org", "url_scheme"),
    ("cid:part1", "url_scheme"),
    ("C:\\Users\\a.jpg", "url_scheme"),
    ("tel:123", "url_scheme"),
    ("a:b.jpg", "url_scheme"),
    ("{{ item.src }}", "https://www.example.org/shop/items/%7B%7B%20item.src%20%7D%7D"),
    ("<?php echo 1 ?>", "https://www.example.org/shop/items/%3C?php%20echo%201%20?%3E"),
    ("%20", "https://www.example.org/shop/items/%20"),
    ("a|b.jpg", "https://www.example.org/shop/items/a|b.jpg"),
    ("a\"b'c.jpg", "https://www.example.org/shop/items/a%22b'c.jpg"),
    ("a`b.jpg", "https://www.example.org/shop/items/a%60b.jpg"),
    ("[a].jpg", "https://www.example.org/shop/items/[a].jpg"),
    ("a^b.jpg", "https://www.example.org/shop/items/a%5Eb.jpg"),
    (";a.jpg", "https://www.example.org/shop/items/;a.jpg"),
    (".", "https://www.example.org/shop/items/"),
    ("..", "https://www.example.org/shop/"),
    ("/", "https://www.example.org/"),
    ("/../a.jpg", "https://www.example.org/a.jpg"),
    ("//", "bad_url"),
    ("///a.jpg", "https://a.jpg/"),
    ("////cdn.example.net/a.jpg", "https://cdn.example.net/a.jpg"),
    ("", "bad_url"),
    (" ", "bad_url"),
    ("\t\n", "bad_url"),
    ("  a.jpg\n", "https://www.example.org/shop/items/a.jpg"),
    ("a\n.jpg", "https://www.example.org/shop/items/a.jpg"),
    ("ht\ntps://example.org/a\tb.jpg", "https://example.org/ab.jpg"),
    ("\x00a.jpg", "https://www.example.org/shop/items/a.jpg"),
    ("\x01", "bad_url"),
    ("a\x00b.jpg", "https://www.example.org/shop/items/a%00b.jpg"),
    ("https://exa\xadmple.org/a.jpg", "https://example.org/a.jpg"),
    ("https://ex\x00.org/", "bad_url"),
    ("\ud800.jpg", "bad_url"),
    ("https://☃.example/☃.png", "https://xn--n3h.example/%E2%98%83.png"),
    ("https://faß.de/a.jpg", "https://xn--fa-hia.de/a.jpg"),
]

BASES = [
    (None, "a.jpg", "https://www.example.org/shop/items/a.jpg"),
    ("", "a.jpg", "https://www.example.org/shop/items/a.jpg"),
    ("/", "a.jpg", "https://www.example.org/a.jpg"),
    ("/static", "a.jpg", "https://www.example.org/a.jpg"),
    ("/static/", "a.jpg", "https://www.example.org/static/a.jpg"),
    ("../", "a.jpg", "https://www.example.org/shop/a.jpg"),
    ("https://cdn.example.net/x/", "a.jpg", "https://cdn.example.net/x/a.jpg"),
    ("https://cdn.example.net/x/", "/a.jpg", "https://cdn.example.net/a.jpg"),
    ("//cdn.example.net/x/", "a.jpg", "https://cdn.example.net/x/a.jpg"),
    ("http://cdn.example.net/x/", "//other.example/a.jpg", "http://other.example/a.jpg"),
    ("https://cdn.example.net/x/", "https://abs.example/a.jpg", "https://abs.example/a.jpg"),
    ("?y=2", "#f", "https://www.example.org/shop/items/page.html?y=2"),
    ("http://", "a.jpg", "https://www.example.org/shop/items/a.jpg"),
    ("data:text/html,x", "a.jpg", "https://www.example.org/shop/items/a.jpg"),
    ("javascript:void(0)", "a.jpg", "https://www.example.org/shop/items/a.jpg"),
    (" /static/\n", "a.jpg", "https://www.example.org/static/a.jpg"),
    ("about:blank", "a.jpg", "bad_url"),
    ("file:///home/me/", "a.jpg", "url_scheme"),
]


def outcome(src: str | None, base: str | None, max_chars: int = 2048) -> str:
    try:
        return image_url(src, base, max_chars)
    except UrlRefusedError as refused:
        return refused.reason


@pytest.mark.parametrize(("src", "expected"), CASES)
def test_table(src: str, expected: str) -> None:
    assert outcome(src, base_url(PAGE, None)) == expected


@pytest.mark.parametrize(("base_href", "src", "expected"), BASES)
def test_base_href(base_href: str | None, src: str, expected: str) -> None:
    assert outcome(src, base_url(PAGE, base_href)) == expected


def test_missing_source() -> None:
    assert outcome(None, base_url(PAGE, None)) == "bad_url"


def test_a_page_with_an_invalid_url_still_has_absolute_images() -> None:
    assert base_url("not a url", "/static/") is None
    assert outcome("https://Example.org/a.jpg", None) == "https://example.org/a.jpg"
    assert outcome("a.jpg", None) == "bad_url"


def test_length_is_that_of_the_resolved_url_without_its_fragment() -> None:
    url = "https://example.org/" + "a" * 80
    assert outcome(url + "#" + "b" * 5000, None, 100) == url
    assert outcome(url + "b", None, 100) == "url_too_long"
    assert outcome("https://example.org/" + "ä" * 14, None, 100) == "url_too_long"


def test_the_scheme_is_checked_before_the_length() -> None:
    assert outcome("data:image/png;base64," + "A" * 9000, None) == "url_scheme"


def test_original_resolved_one_directory_too_high() -> None:
    """The first workers joined relative links to the parent of the page's directory."""

    def original(page: str, src: str) -> str:
        parts = urlsplit(page)
        directory = posixpath.dirname(posixpath.dirname(parts.path))
        return f"{parts.scheme}://{parts.netloc}{posixpath.join(directory, src)}"

    assert original(PAGE, "photo.jpg") == "https://www.example.org/shop/photo.jpg"
    assert outcome("photo.jpg", base_url(PAGE, None)).endswith("/shop/items/photo.jpg")


def test_original_ignored_base_href() -> None:
    base = "https://cdn.example.net/x/"
    assert urljoin(PAGE, "photo.jpg") == "https://www.example.org/shop/items/photo.jpg"
    assert outcome("photo.jpg", base_url(PAGE, base)) == "https://cdn.example.net/x/photo.jpg"


@pytest.mark.parametrize(
    ("src", "by_urljoin"),
    [
        (
            "\\\\cdn.example.net\\a.jpg",
            "https://www.example.org/shop/items/\\\\cdn.example.net\\a.jpg",
        ),
        ("a b.jpg", "https://www.example.org/shop/items/a b.jpg"),
        ("HTTPS://EXAMPLE.ORG:443/a.jpg", "https://EXAMPLE.ORG:443/a.jpg"),
    ],
)
def test_urljoin_is_not_what_browsers_do(src: str, by_urljoin: str) -> None:
    assert urljoin(PAGE, src) == by_urljoin
    assert outcome(src, base_url(PAGE, None)) != by_urljoin


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60), st.none() | st.text(max_size=30))
def test_what_is_accepted_is_normal_and_plain(src: str, base_href: str | None) -> None:
    url = outcome(src, base_url(PAGE, base_href))
    if url.startswith("http"):
        assert url.isascii()
        assert url.isprintable()
        assert " " not in url
        assert "#" not in url
        assert image_url(url, None, 2048) == url
        assert parse_entry(url) == ("url", url), "a list names it as pairs hold it"


PIECES = [
    "http://", "https://", "//", "/", "?", "#", ":", "@", ".", "..", "%2e", "%2E", "%41", "%", " ",
    "\t", "\\", "'", "|", "^", "ü", "img.example.org", "EXAMPLE.org", "xn--bcher-kva.de", "1.2.3.4",
    "0x7f.1", "a", "B", "7", "_x", "-", "~", "photo.jpg", "a b", "data:", "javascript:", "[::1]",
    ":80", ":8080", "http:", "https:/", "xn--", ".hidden", "", "host", "a.0x1", "a.b1", "!$&=",
]  # fmt: skip
BASES = [
    None, "http://www.example.org/", "https://www.example.org/a/b.html?q=/x/y#z/", "http://h/",
    "http://1.2.3.4/a/", "https://example.org:8443/a/b/c", "http://user@example.org/a/",
    "http://example.org/a/?u=@", "file:///a/b", "http://xn--bcher-kva.example/a/b",
    "http://example.org/a;b=c/d%20e/f", "about:blank", "http://example.org/a//b",
]  # fmt: skip


@given(st.sampled_from(BASES), st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
@settings(max_examples=1000, deadline=None)
def test_the_quick_way_gives_the_same_answer(base: str | None, src: str) -> None:
    def answer(resolve: Callable[[], str]) -> str:
        try:
            return resolve()
        except UrlRefusedError as refused:
            return f"refused: {refused.reason}"

    def quick() -> str:
        # Beside another, whose line end must not shift what is found of them.
        _, found = image_urls(["a\nb.jpg", src], [Base(None), Base(base)], 60)
        if isinstance(found, UrlRefusedError):
            raise found
        return found

    assert answer(quick) == answer(lambda: image_url(src, base, 60))


def test_long_origins_are_not_kept_in_memory() -> None:
    before = urls._is_plain_origin.cache_info().misses
    found = image_urls(
        [f"http://{'a.' * n}example/a.jpg" for n in (200, 300)], [Base(None)] * 2, 9999
    )
    assert [len(str(url)) for url in found] == [420, 620]
    assert urls._is_plain_origin.cache_info().misses <= before + 1
