"""The Creative Commons licence that a page declares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import ada_url

from laion_assets.wat import Link

NO_LICENCE: Final = "?"

# Kind, then version, then jurisdiction ("us", "igo", "scotland"). What follows ("deed.fr",
# "legalcode") names a page about the licence, not another licence.
_LICENCE: Final = re.compile(
    r"(https?)://(?:www\.)?creativecommons\.org/"
    r"((?:licenses/[a-z+-]+|publicdomain/(?:zero|mark|certification))/\d+\.\d+(?:/[a-z]{2,8})?"
    r"|licenses/publicdomain)"
    r"(?:[/?#].*)?"
)
_ABOUT: Final = re.compile(r"/(?:deed|legalcode|rdf)$")


def page_licence(links: Iterable[Link], base: str | None) -> str:
    """The page's licence as a URL, or ``"?"``.

    The first link with ``rel=license`` wins, else the first on the page. The URL keeps kind,
    version and jurisdiction, in lower case, and ends in a slash; ``www.``, the language of a deed,
    query and fragment are dropped.
    """
    first = None
    for link in links:
        licence = licence_of(link.url or "", base)
        if licence is None:
            continue
        if "license" in (link.rel or "").lower().split():
            return licence
        first = first or licence
    return first or NO_LICENCE


def licence_of(url: str, base: str | None) -> str | None:
    """The canonical URL of the licence that ``url`` leads to, or None if it is not a licence."""
    try:
        resolved = ada_url.normalize_url(url) if base is None else ada_url.join_url(base, url)
    except ValueError:
        return None
    match = _LICENCE.fullmatch(resolved.lower())
    if match is None:
        return None
    scheme, path = match.groups()
    return f"{scheme}://creativecommons.org/{_ABOUT.sub('', path)}/"
