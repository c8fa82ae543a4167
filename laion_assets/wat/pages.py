"""Extract HTML pages and the links that matter from a WAT file.

A WAT record's payload is JSON. Its useful part is
``Envelope.Payload-Metadata.HTTP-Response-Metadata.HTML-Metadata`` (``Head`` and ``Links``). It is
decoded into typed structs, which skips the rest without building it. A record with a value that
does not fit, or that is not quite JSON, is read a second time, value by value (:mod:`.lenient`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from laion_assets.funnel import StageCounts
from laion_assets.wat.lenient import NotJsonError, read_html
from laion_assets.wat.members import Damage
from laion_assets.wat.metadata import Html, Link
from laion_assets.wat.records import Record, read_records
from laion_assets.wat.references import decode_attribute

IMAGE_PATH: Final = "IMG@/src"

DECODES_SINCE: Final = "2019-07"
"""Date, as far as it matters, of the first WAT files whose writer has decoded the character
references in attributes (see :mod:`.references`)."""


_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_HEAD_BYTES: Final = 4096
_SHOWN: Final = 200


# What the URL Standard drops from a URL, and what else must not reach a list of URLs or a terminal:
# control characters, and those that turn the direction of what is shown.
_DROPPED: Final = re.compile(r"[\t\n\r]")
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class NoPagesError(ValueError):
    """A file holds no HTML page; the message says what it seems to be."""


class Page(NamedTuple):
    """An HTML page of a crawl."""

    url: str
    """Without control characters: escaped, as the URL Standard has it."""
    base: str | None
    """``<base href>`` as written, not yet resolved against ``url``."""
    links: Sequence[Link]
    """The images, and all other links with an alt text, in document order."""
    html: Html
    """The page's metadata as the record has it."""
    decodes: bool = False
    """Whether the character references in ``html`` are still to be decoded; those of the other
    fields are."""
    size: int = 0
    """Bytes of the record's JSON, by which whoever keeps pages bounds them."""

    @property
    def licences(self) -> Sequence[Link]:
        """Links that name creativecommons.org (not in capitals throughout): ``<link>`` elements
        first, then document order. Every link is looked at each time."""
        # The cheap check comes first: few URLs have "ommons".
        named = [
            link
            for link in (*self.html.head.link, *self.html.links)
            if link.url and "ommons" in link.url and "creativecommons.org" in link.url.lower()
        ]
        return [*map(_decoded, named)] if self.decodes else named


class _Response(msgspec.Struct, gc=False):
    html: Html | None = msgspec.field(name="HTML-Metadata", default=None)


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
    bytes the file holds, nothing else is raised than ``OSError``, if reading itself fails, and
    :class:`NoPagesError` at the end of a file without a page: that is no WAT file.
    """
    records = pages = 0
    with path.open("rb", buffering=0) as stream:
        for record in read_records(stream):
            if isinstance(record, Damage):
                counts.reject(record.reason, str(record))
                continue
            records += 1
            page = page_of(record, counts)
            if page is not None:
                pages += 1
                yield page
        if not pages:
            stream.seek(0)
            raise NoPagesError(_what_it_is(stream.read(_HEAD_BYTES), records))


def _what_it_is(head: bytes, records: int) -> str:
    """Describe a file without pages by its first bytes, for people."""
    if records:
        return f"no HTML page in it, only {records:,} other records: not a WAT file"
    if not head:
        return "the file is empty"
    if head.startswith(_ZSTD):
        return "the file is compressed by zstd; WAT files are read gzipped or plain: zstd -d first"
    if head.lstrip().startswith((b"<", b"{")):
        text = " ".join(head.decode("utf-8", "replace").split())
        return f"the file is an answer in its place, not a WAT file: {text[:_SHOWN]}"
    return "no WARC record in it: not a WAT file"


def page_of(record: Record, counts: StageCounts) -> Page | None:
    """The record's page, or None; ``counts`` counts it either way."""
    if record.kind != "metadata":
        counts.reject("not_html")
        return None
    try:
        html = _html(record.block)
    except NotJsonError as error:
        counts.reject("bad_json", f"{record.uri}: {error}")
        return None
    if html is None:
        counts.reject("not_html")
        return None
    counts.keep()
    return _page(record, html)


def _html(block: bytes) -> Html | None:
    """The block's ``HTML-Metadata``, None if it has none. Raises :class:`NotJsonError`."""
    try:
        payload = _decoder.decode(block).envelope.payload
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return read_html(block)
    return payload.response.html if payload and payload.response else None


def _page(record: Record, html: Html) -> Page:
    links = [link for link in html.links if link.path == IMAGE_PATH or link.alt is not None]
    base = html.head.base
    decodes = bool(record.date) and record.date < DECODES_SINCE
    if decodes:
        base = base and decode_attribute(base)
        links = [*map(_decoded, links)]
    return Page(clean_page_url(record.uri), base, links, html, decodes, len(record.block))


def clean_page_url(uri: str) -> str:
    """A page's URL without control characters: dropped or escaped, as the URL Standard has it."""
    # Checked for every page, and nearly all pass.
    if uri.isprintable() and " " not in uri:
        return uri
    return _CONTROL.sub(lambda found: quote(found[0]), _DROPPED.sub("", uri.strip()))


def _decoded(link: Link) -> Link:
    def decode(value: str | None) -> str | None:
        return value and decode_attribute(value)

    return Link(link.path, decode(link.url), decode(link.alt), decode(link.rel), link.damaged)
