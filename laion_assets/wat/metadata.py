"""What of a page's metadata matters, as a WAT record has it."""

from __future__ import annotations

import msgspec


class Link(msgspec.Struct, frozen=True, gc=False):
    """One entry of ``Links`` or ``Head.Link`` as in the page, neither cleaned nor resolved."""

    path: str | None = None
    url: str | None = None
    alt: str | None = None
    rel: str | None = None
    damaged: bool = False
    """Whether a value of it is not text, or not sound text."""


class Head(msgspec.Struct, gc=False):
    """``Head``, as far as it matters."""

    base: str | None = msgspec.field(name="Base", default=None)
    link: list[Link] = msgspec.field(name="Link", default_factory=list)


class Html(msgspec.Struct, gc=False):
    """``HTML-Metadata``, as far as it matters."""

    head: Head = msgspec.field(name="Head", default_factory=Head)
    links: list[Link] = msgspec.field(name="Links", default_factory=list)
