"""Requests that a page of another site makes its visitor's browser send, to a server on loopback
or behind a log-in.

The rules are those of Fetch (https://fetch.spec.whatwg.org): a browser sends `Origin` with every
request that is not a plain GET, and asks by a preflight before it sends a cross-site request of a
type that forms cannot send. `Sec-Fetch-Site` goes to https and loopback.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
JSON: Final = "application/json"


def from_another_site(headers: Headers, allowed: Collection[str] = ()) -> bool:
    """Return True if a browser sends this for a page of another origin, unless that is allowed.

    Another port of the same host is another origin. What is no browser sends none of this.
    """
    origin = headers.get("origin")
    if origin in allowed:
        return False
    if "sec-fetch-site" in headers:  # decides alone: a proxy may have changed the Host
        return headers["sec-fetch-site"] not in ("none", "same-origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def any_page_could_send(headers: Headers, allowed: Collection[str] = ()) -> bool:
    """Return True if the body's type needs no preflight, so that any page could have it sent.

    What is no browser may leave the type out, as clip-retrieval's client does.
    """
    if media_type(headers) == JSON or headers.get("origin") in allowed:
        return False
    return "content-type" in headers or "origin" in headers or "sec-fetch-site" in headers


def media_type(headers: Headers) -> str:
    """Content-Type without its parameters, in lower case; empty if there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()
