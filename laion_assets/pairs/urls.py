"""Image URLs, resolved as a browser does (WHATWG URL Standard, HTML Standard 2.4.3)."""

from __future__ import annotations

from typing import Final

import ada_url

# What the URL Standard strips from both ends of its input.
_STRIPPED: Final = "".join(map(chr, range(0x21)))
_IGNORED_BASES: Final = ("data:", "javascript:")


class UrlRefusedError(ValueError):
    """The URL cannot be an image's; ``reason`` is of the vocabulary of stage ``pairs``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def base_url(page_url: str, base_href: str | None) -> str | None:
    """What the page's URLs are relative to; None if the page's own URL is not a URL.

    ``base_href`` is itself resolved against the page; an invalid one, and one of a scheme that
    the HTML Standard ignores (data:, javascript:), counts for nothing.
    """
    try:
        page = ada_url.normalize_url(page_url)
    except ValueError:
        return None
    if base_href is None:
        return page
    try:
        base = ada_url.join_url(page, base_href)
    except ValueError:
        return page
    return page if base.startswith(_IGNORED_BASES) else base


def image_url(src: str | None, base: str | None, max_chars: int) -> str:
    """The absolute http(s) URL of an image, without its fragment, in ASCII (IDNA, %-encoded).

    Raises :class:`UrlRefusedError`, the first that applies of: ``bad_url`` (``src`` missing or
    blank, or not a valid URL against ``base``), ``url_scheme`` (not http or https), ``bad_url``
    (a user name or password: browsers refuse those in an image's URL), ``url_too_long``.
    """
    if src is None or not src.strip(_STRIPPED):
        raise UrlRefusedError("bad_url")
    try:
        resolved = ada_url.normalize_url(src) if base is None else ada_url.join_url(base, src)
    except ValueError as error:
        raise UrlRefusedError("bad_url") from error
    if not resolved.startswith(("http://", "https://")):
        raise UrlRefusedError("url_scheme")
    # In a serialised URL of these schemes "#" begins the fragment and nothing else, and "@"
    # before the path ends the credentials.
    url = resolved.partition("#")[0]
    if "@" in url.split("/", 3)[2]:
        raise UrlRefusedError("bad_url")
    if len(url) > max_chars:
        raise UrlRefusedError("url_too_long")
    return url
