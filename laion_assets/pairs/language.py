"""The language of a text, detected by CLD2.

CLD2's default mode names a language only when it is confident. Its ``bestEffort`` mode always
guesses, and takes short Romance captions for English ("Vista da casa", "Photo de profil"). The
default mode reports these, and lone brand names ("Google Maps"), as unknown, which serves a subset
of one language better.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

UNKNOWN: Final = "unknown"
ENGLISH: Final = "en"

_REMEMBERED: Final = 1 << 15
# Texts that come again, such as names of shops, are short, and a cache of long ones would be large.
_REMEMBERED_CHARS: Final = 256
# Blocks of Unicode without a Latin letter: Greek to Mongolian, CJK to Hangul, and marks between.
_WITHOUT_LATIN: Final = re.compile(
    r"[^A-Za-z\u0080-\u036f\u1ab0-\u1fff\u2070-\u2bff\u2c60-\u2dff\ua640-\uabff\ud800-\uffff"
    r"\U00010000-\U0010ffff]*"
).fullmatch


def is_never_english(text: str) -> bool:
    """Whether :func:`detect` cannot answer English, because no letter of the text is Latin.

    CLD2 scores a text by its scripts, and English in Latin alone. (Tried: each of the 48,284
    characters of these blocks, and 330,000 random texts of them, gave no English.) A false answer
    says nothing.
    """
    return _WITHOUT_LATIN(text) is not None


def detect(text: str) -> tuple[str, float]:
    """``(code, score)`` of a cleaned text.

    ``code`` is CLD2's: ISO 639-1 where one exists ("en", "zh"), else a longer one ("zh-Hant",
    "ceb"), or ``"unknown"``. ``score`` is the share of the text, 0 to 1, that is in that language;
    0 for unknown.
    """
    return _remembered(text) if len(text) <= _REMEMBERED_CHARS else _detected(text)


def _detected(text: str) -> tuple[str, float]:
    import pycld2

    try:
        reliable, _, found = pycld2.detect(text, isPlainText=True)
    except (pycld2.error, UnicodeEncodeError):
        # CLD2 refuses texts with control characters, surrogates or non-characters anywhere.
        printable = "".join(char for char in text if char.isprintable())
        if printable == text:
            return UNKNOWN, 0.0
        return _detected(printable)
    _, code, percent, _ = found[0]
    if not reliable or code == "un":
        return UNKNOWN, 0.0
    return code, percent / 100


_remembered: Final = lru_cache(_REMEMBERED)(_detected)
