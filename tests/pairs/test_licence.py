"""The licence of a page."""

from __future__ import annotations

import pytest

from laion_assets.pairs.licence import NO_LICENCE, licence_of, page_licence
from laion_assets.wat import Link

PAGE = "https://page.example/dir/page.html"
CC = "https://creativecommons.org/"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (CC + "licenses/by/4.0/", CC + "licenses/by/4.0/"),
        (CC + "licenses/by-nc-sa/2.5/au", CC + "licenses/by-nc-sa/2.5/au/"),
        (CC + "licenses/by/2.5/scotland/", CC + "licenses/by/2.5/scotland/"),
        (CC + "licenses/by/3.0/igo/legalcode", CC + "licenses/by/3.0/igo/"),
        (CC + "licenses/by/4.0/deed.fr", CC + "licenses/by/4.0/"),
        (CC + "licenses/by/4.0/deed", CC + "licenses/by/4.0/"),
        (CC + "licenses/by/4.0/?ref=chooser-v1#x", CC + "licenses/by/4.0/"),
        (CC + "publicdomain/zero/1.0/", CC + "publicdomain/zero/1.0/"),
        (CC + "publicdomain/mark/1.0/deed.en", CC + "publicdomain/mark/1.0/"),
        (CC + "licenses/publicdomain/", CC + "licenses/publicdomain/"),
        (CC + "licenses/nc-sampling+/1.0/", CC + "licenses/nc-sampling+/1.0/"),
        (
            "http://www.creativecommons.org/licenses/by-sa/3.0/de/",
            "http://creativecommons.org/licenses/by-sa/3.0/de/",
        ),
        ("//CreativeCommons.org/licenses/BY/4.0/", CC + "licenses/by/4.0/"),
        (" https://creativecommons.org/licenses/by/4.0/\n", CC + "licenses/by/4.0/"),
        (CC + "licenses/", None),
        (CC + "licenses/by/", None),
        (CC + "about/cclicenses/", None),
        ("https://notcreativecommons.org/licenses/by/4.0/", None),
        ("https://evil.example/?u=https://creativecommons.org/licenses/by/4.0/", None),
        ("creativecommons.org/licenses/by/4.0/", None),  # relative: a page of this host
        ("https://", None),
    ],
)
def test_url(url: str, expected: str | None) -> None:
    assert licence_of(url, PAGE) == expected


def link(url: str, rel: str | None = None) -> Link:
    return Link(path="A@/href", url=url, rel=rel)


def test_the_declared_licence_wins_then_the_first() -> None:
    by, sa, nc = (CC + f"licenses/{kind}/4.0/" for kind in ("by", "by-sa", "by-nc"))
    assert page_licence([link(by), link(sa, "License nofollow"), link(nc, "license")], PAGE) == sa
    assert page_licence([link(CC), link(by), link(sa)], PAGE) == by
    assert page_licence([link(CC, "license"), link(by)], PAGE) == by
    assert page_licence([link(by, "license-page")], None) == by
    assert page_licence([link("https://x.example/", "license"), Link()], PAGE) == NO_LICENCE
    assert page_licence([], PAGE) == "?"
