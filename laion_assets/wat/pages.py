"""Extract HTML pages and the links that matter from a WAT file.

A WAT record's payload is JSON. Its useful part is
``Envelope.Payload-Metadata.HTTP-Response-Metadata.HTML-Metadata`` (``Head`` and ``Links``). It is
decoded into typed structs, which skips the rest without building it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from laion_assets.funnel import StageCounts
from laion_assets.wat.members import Damage
from laion_assets.wat.records import Record, read_records

IMAGE_PATH: Final = "IMG@/src"


class Link(msgspec.Struct, frozen=True, gc=False):
    """One entry of ``Links`` or ``Head.Link`` as in the page, neither cleaned nor resolved."""

    path: str | None = None
    url: str | None = None
    alt: str | None = None
    rel: str | None = None


class Page(NamedTuple):
    """An HTML page of a crawl."""

    url: str
    base: str | None
    """``<base href>`` as written, not yet resolved against ``url``."""
    links: Sequence[Link]
    """The images, and all other links with an alt text, in document order."""
    licences: Sequence[Link]
    """Links that name creativecommons.org (not in capitals throughout): ``<link>`` elements first,
    then document order."""


class _Head(msgspec.Struct, gc=False):
    base: str | None = msgspec.field(name="Base", default=None)
    link: list[Link] = msgspec.field(name="Link", default_factory=list)


class _Html(msgspec.Struct, gc=False):
    head: _Head = msgspec.field(name="Head", default_factory=_Head)
    links: list[Link] = msgspec.field(name="Links", default_factory=list)


class _Response(msgspec.Struct, gc=False):
    html: _Html | None = msgspec.field(name="HTML-Metadata", default=None)


class _Payload(msgspec.Struct, gc=False):
    response: _Response | None = msgspec.field(name="HTTP-Response-Metadata", default=None)


class _Envelope(msgspec.Struct, gc=False):
    payload: _Payload | None = msgspec.field(name="Payload-Metadata", default=None)


class _Wat(msgspec.Struct, gc=False):
    envelope: _Envelope = msgspec.field(name="Envelope")


_decoder: Final = msgspec.json.Decoder(_Wat)


def read_pages(path: Path, counts: StageCounts) -> Iterator[Page]:
    """Stream the HTML pages of a WAT file, in bounded memory whatever the file's size.

    ``counts`` (stage ``wat``) counts every WARC record: kept if it is an HTML page, with or
    without links that matter. A damaged record is counted and costs that record alone. Whatever
    bytes the file holds, only ``OSError`` is raised, if reading itself fails.
    """
    with path.open("rb", buffering=0) as stream:
        for record in read_records(stream):
            if isinstance(record, Damage):
                counts.reject(record.reason, str(record))
                continue
            page = page_of(record, counts)
            if page is not None:
                yield page


def page_of(record: Record, counts: StageCounts) -> Page | None:
    """The record's page, or None; ``counts`` counts it either way."""
    if record.kind != "metadata":
        counts.reject("not_html")
        return None
    try:
        wat = _decoder.decode(record.block)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        counts.reject("bad_json", f"{record.uri}: {error}")
        return None
    payload = wat.envelope.payload
    html = payload.response.html if payload and payload.response else None
    if html is None:
        counts.reject("not_html")
        return None
    counts.keep()
    return _page(record.uri, html)


def _page(url: str, html: _Html) -> Page:
    links = [link for link in html.links if link.path == IMAGE_PATH or link.alt is not None]
    # Checked for every link of the crawl, so the cheap check comes first: few URLs have "ommons".
    licences = [
        link
        for link in (*html.head.link, *html.links)
        if link.url and "ommons" in link.url and "creativecommons.org" in link.url.lower()
    ]
    return Page(url, html.head.base, links, licences)
