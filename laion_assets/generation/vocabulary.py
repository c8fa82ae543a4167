"""Captions as tokens: CLIP's byte-pair encoding, of which only what the training pairs say is kept.

CLIP knows 49,408 tokens. A table of them all would be most of a small transformer, and rows that
no caption trains are noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PAD: Final = 0
START: Final = 1
END: Final = 2
UNKNOWN: Final = 3
_WORDS_FROM: Final = 4


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


class Vocabulary:
    """Token numbers of captions; equal training captions give equal numbers."""

    def __init__(self, words: Sequence[int]) -> None:
        """``words``: CLIP's tokens that are known, in the order of their numbers here."""
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(self.words, _WORDS_FROM)}

    @classmethod
    def of(cls, captions: Iterable[str]) -> Vocabulary:
        return cls(sorted({word for caption in captions for word in _tokenizer().encode(caption)}))

    def __len__(self) -> int:
        return len(self.words) + _WORDS_FROM

    def encode(self, captions: Sequence[str], length: int) -> NDArray[np.uint16]:
        """Tokens (n, length): start, the caption (cut where it is longer), end, padding."""
        rows = np.full((len(captions), length), PAD, np.uint16)
        for row, caption in zip(rows, captions, strict=True):
            words = _tokenizer().encode(caption)[: length - 2]
            known = [self._numbers.get(word, UNKNOWN) for word in words]
            row[: len(known) + 2] = [START, *known, END]
        return rows
