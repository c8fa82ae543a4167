"""The language of a text, detected by CLD2.

CLD2's default mode names a language only when it is confident. Its ``bestEffort`` mode always
guesses, and takes short Romance captions for English ("Vista da casa", "Photo de profil"). The
default mode reports these, and lone brand names ("Google Maps"), as unknown, which serves a subset
of one language better.
"""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = "unknown"


def detect(text: str) -> tuple[str, float]:
    """``(code, score)`` of a cleaned text.

    ``code`` is CLD2's: ISO 639-1 where one exists ("en", "zh"), else a longer one ("zh-Hant",
    "ceb"), or ``"unknown"``. ``score`` is the share of the text, 0 to 1, that is in that language;
    0 for unknown.
    """
    import pycld2

    try:
        reliable, _, found = pycld2.detect(text, isPlainText=True)
    except (pycld2.error, UnicodeEncodeError):
        # CLD2 refuses texts with control characters, surrogates or non-characters anywhere.
        printable = "".join(char for char in text if char.isprintable())
        if printable == text:
            return UNKNOWN, 0.0
        return detect(printable)
    _, code, percent, _ = found[0]
    if not reliable or code == "un":
        return UNKNOWN, 0.0
    return code, percent / 100
