"""Clean alt texts."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from laion_assets.wat.references import decode_complete

# White space, control characters, and the two zero-width spaces that pages use as filler. Other
# format characters stay: joiners are part of words (Persian, Hindi) and of emoji.
_FOLDED: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b\ufeff]+")


def clean_text(alt: str) -> str:
    """The alt text as a reader sees it: white space folded, NFC.

    Character references that are left in a decoded attribute were escaped twice by the page's
    author: complete ones are decoded once more. (Of 29,481 real pairs 36 were so, and none meant
    it.)

    Runs of white space and control characters become one space, and none is left at either end.
    """
    text = decode_complete(alt)
    # Most texts are clean already, and checking that is ten times cheaper than folding them.
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    text = _FOLDED.sub(" ", text).strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)
