"""Clean alt texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from laion_assets.wat.references import decode_complete

# White space, control characters, and the two zero-width spaces that pages use as filler. Other
# format characters stay: joiners are part of words (Persian, Hindi) and of emoji.
_FOLDED: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\ufeff]+")

# The elements that people write into captions, and comments. Anything else in angle brackets stays:
# "<3", "a < b", "<name>". Those of the first group stand within a word.
_MARKUP: Final = re.compile(
    r"</?(?:(a|abbr|b|big|code|em|font|i|mark|s|small|span|strike|strong|sub|sup|u|wbr)"
    r"|article|blockquote|br|button|center|div|figcaption|figure|form|h[1-6]|hr|iframe|img|input"
    r"|label|li|nobr|noscript|ol|p|picture|pre|script|section|source|style|table|tbody|td|th|thead"
    r"|tr|ul|video)(?:\s[^<>]*)?/?>|<!--[^<>]*-->",
    re.I,
)


def clean_text(alt: str) -> str:
    """The alt text as a reader sees it: without HTML's tags, white space folded, NFC.

    Character references that are left in a decoded attribute were escaped twice by the page's
    author: complete ones are decoded once more. (Of 29,481 real pairs 36 were so, and none meant
    it.)

    Runs of white space and control characters become one space, and none is left at either end.
    """
    text = decode_complete(alt)
    found = text.count("<")
    while found:  # what is left may be a tag in its turn
        text, found = _MARKUP.subn(_unmarked, text)
    # Most texts are clean already, and checking that is ten times cheaper than folding them: of all
    # that is folded, only the plain space is printable.
    if not text.isprintable() or "  " in text:
        text = _FOLDED.sub(" ", text)
    text = text.strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def clean_texts(alts: Sequence[str | None]) -> list[str]:
    """The alt texts, each cleaned by :func:`clean_text`; ``""`` for None."""
    texts = []
    for alt in alts:
        if not alt:
            alt = ""
        elif (
            not alt.isprintable()
            or alt[0] == " "
            or alt[-1] == " "
            or "&" in alt
            or "<" in alt
            or "  " in alt
        ):
            alt = clean_text(alt)
        elif not alt.isascii():
            alt = unicodedata.normalize("NFC", alt)
        texts.append(alt)
    return texts


def _unmarked(tag: re.Match[str]) -> str:
    return "" if tag[1] else " "
