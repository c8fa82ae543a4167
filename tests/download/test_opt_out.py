from __future__ import annotations

import pytest

from laion_assets.download.opt_out import opted_out


@pytest.mark.parametrize(
    "header",
    [
        "noai",
        "noimageai",
        "noml",
        "noindex",
        "noimageindex",
        "none",
        "NoAI",
        " nofollow ,  noimageai ",
        "laion-assets: noai",
        "LAION-assets:noai",
        "*: noindex",
        "otherbot: nofollow, laion-assets: noindex",
        "laion-assets: nofollow, noai",
        "max-snippet: 20, noai",
        "unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai",
    ],
)
def test_refuses(header: str) -> None:
    assert opted_out([header], "laion-assets")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "all",
        "nofollow",
        "noarchive, nosnippet",
        "otherbot: noai",
        "otherbot: nofollow, noai",
        "laion-assets: all, otherbot: noai",
        "not-noai",
        "unavailable_after: 25 Jun 2010 15:00:00 PST",
        ":::,,:",
    ],
)
def test_allows(header: str) -> None:
    assert opted_out([header], "laion-assets") is None


def test_every_header_counts_and_none_affects_the_next() -> None:
    assert opted_out(["otherbot: nofollow", "noai"], "laion-assets") == "noai"
    assert opted_out([], "laion-assets") is None
