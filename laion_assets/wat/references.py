"""HTML character references in attribute values and in texts.

Common Crawl's writer decodes those in attribute values since June 2019 (ia-web-commons, commit
d5af4e5 of 2019-06-19). The values of older WAT files are as they stand in the page.
"""

from __future__ import annotations

import html
import re
from html.entities import html5
from typing import Final

_ANY: Final = re.compile(r"&(?:#(?:[0-9]+|[xX][0-9a-fA-F]+);?|([A-Za-z][A-Za-z0-9]*)(;?)(=?))")
_COMPLETE: Final = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")


def decode_attribute(value: str) -> str:
    """The value of an attribute as a browser has it (HTML Standard, 13.2.5.72-80).

    A named reference without its semicolon is none before ``=``, a letter or a digit: the query
    ``?a=1&copy=2`` and the text ``oven&microwave`` stay as they are.
    """
    return _ANY.sub(_decoded, value) if "&" in value else value


def _decoded(found: re.Match[str]) -> str:
    whole, name, semicolon, equals = found[0], found[1], found[2], found[3]
    if name is None:
        return html.unescape(whole if whole.endswith(";") else f"{whole};")
    if semicolon:
        return html5.get(f"{name};", f"&{name};") + equals
    return whole if equals else html5.get(name, whole)


def decode_complete(text: str) -> str:
    """The text with those references decoded that end in a semicolon, once."""
    return _COMPLETE.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text
