"""Which columns of a list hold the URL and the caption, by name or as the options say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from laion_assets.url_lists.files import ListFile, UrlListError
from laion_assets.url_lists.options import ReadOptions

URL_NAMES: Final = ("url", "image_url", "img_url", "image_link", "photo_image_url", "src", "uri")
"""Known names of the URL's column, in any case; an earlier one goes before a later one."""
TEXT_NAMES: Final = ("text", "caption", "alt", "alt_text", "description", "title")
"""Known names of the caption's column, likewise."""
SOURCE: Final = "source_"
"""Prefix of the list's own columns in what is made of it."""

LOOKS_LIKE_A_URL: Final = re.compile(r"\s*https?://", re.I).match


@dataclass(frozen=True)
class Columns:
    """Names of a file's columns by what they hold. Picklable."""

    url: str
    text: str | None
    """None: the list has no captions."""
    license: str | None = None
    page_url: str | None = None
    sample_id: str | None = None
    """Column of SAMPLE_IDs; where they are ours, the texts are clean already."""
    others: tuple[str, ...] = ()
    """All but URL and caption."""


def choose_columns(file: ListFile, names: Sequence[str], options: ReadOptions) -> Columns:
    """Choose among the columns of a file. Raises :class:`UrlListError` if no column has the URL."""
    if len(set(names)) < len(names):
        raise UrlListError(f"{file.url} has two columns of the same name: {', '.join(names)}")
    url = _column(file, names, options.url, URL_NAMES)
    if url is None:
        raise UrlListError(
            f"no column of {file.url} has a known name of an image URL; its columns are "
            f"{', '.join(names)}: name the one with the URLs"
        )
    text = None
    if options.captions:
        text = _column(file, [name for name in names if name != url], options.text, TEXT_NAMES)
    return Columns(
        url,
        text,
        license=_column(file, names, "", ("license",)),
        page_url=_column(file, names, "", ("page_url",)),
        sample_id="SAMPLE_ID" if "SAMPLE_ID" in names else None,
        others=tuple(name for name in names if name not in (url, text)),
    )


def _column(file: ListFile, names: Sequence[str], named: str, known: Sequence[str]) -> str | None:
    if named:
        if named in names:
            return named
        raise UrlListError(f"{file.url} has no column {named}; it has {', '.join(names)}")
    lower: dict[str, str] = {}
    for name in names:
        lower.setdefault(name.lower(), name)
    return next((lower[name] for name in known if name in lower), None)
