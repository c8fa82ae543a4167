"""Clean alt texts."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

# White space, control characters, and the two zero-width spaces that pages use as filler. Other
# format characters stay: joiners are part of words (Persian, Hindi) and of emoji.
_FOLDED: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\ufeff]+")


def clean_text(alt: str) -> str:
    """The alt text as a reader sees it: entities decoded once, white space folded, NFC.

    Runs of white space and control characters become one space, and none is left at either end.
    """
    text = html.unescape(alt) if "&" in alt else alt
    # Most texts are clean already, and checking that is ten times cheaper than folding them.
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    text = _FOLDED.sub(" ", text).strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)
