"""Read the HTML metadata of a record that is not quite JSON, or has values of other types.

Writers have put NaN, raw control characters, lone surrogates and broken UTF-8 into WAT files, and
null or arrays where others have text. Each costs the link that has it, not the page. This is slow,
and meant for the few records that the typed decoder refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from laion_assets.wat.metadata import Head, Html, Link

_UNSOUND: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffd\ud800-\udfff]")
"""What no sound text of a page has: control characters but white space, halves of surrogate pairs,
and what stands for bytes that are not UTF-8."""


class NotJsonError(ValueError):
    """The block is not JSON, read as leniently as can be."""


def read_html(block: bytes) -> Html | None:
    """The block's ``HTML-Metadata``; None if it has none. Raises :class:`NotJsonError`."""
    try:
        value = json.loads(block.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(str(error)) from error
    for name in ("Envelope", "Payload-Metadata", "HTTP-Response-Metadata", "HTML-Metadata"):
        if not isinstance(value, dict):
            raise NotJsonError(f"an array or a value where the object with {name} should be")
        value = value.get(name)
        if value is None:
            return None
    if not isinstance(value, dict):
        raise NotJsonError("HTML-Metadata is not an object")
    head = _object(value.get("Head"))
    base = head.get("Base")
    return Html(
        Head(base if isinstance(base, str) and _is_sound(base) else None, _links(head.get("Link"))),
        _links(value.get("Links")),
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _links(value: Any) -> list[Link]:
    if not isinstance(value, list):
        return []
    return [_link(item) for item in value if isinstance(item, dict)]


def _link(item: Mapping[str, Any]) -> Link:
    """The entry with its sound values; ``damaged`` if one that is asked for is not."""
    values = {name: item.get(name) for name in ("path", "url", "alt", "rel")}
    sound = {name: v for name, v in values.items() if isinstance(v, str) and _is_sound(v)}
    given = {name for name, v in values.items() if v is not None}
    return Link(**sound, damaged=len(sound) < len(given))


def _is_sound(text: str) -> bool:
    return _UNSOUND.search(text) is None
