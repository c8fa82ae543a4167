"""Captions as tokens: CLIP's byte-pair encoding, reduced to the tokens of the training captions.

CLIP has 49,408 tokens. A table of all of them would make up most of a small transformer, and rows
that no caption trains stay noise.
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
    """Mapping of captions to token numbers; the same training captions give the same numbers."""

    def __init__(self, words: Sequence[int]) -> None:
        """``words``: the known tokens of CLIP, in the order of their numbers here."""
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(self.words, _WORDS_FROM)}

    @classmethod
    def of(cls, captions: Iterable[str]) -> Vocabulary:
        """Vocabulary of all tokens in the captions."""
        return cls(sorted({word for caption in captions for word in _tokenizer().encode(caption)}))

    def __len__(self) -> int:
        return len(self.words) + _WORDS_FROM

    def encode(self, captions: Sequence[str], length: int) -> NDArray[np.uint16]:
        """Encode captions as uint16 (n, length): start, the caption, end, padding.

        A caption that does not fit is cut.
        """
        rows = np.full((len(captions), length), PAD, np.uint16)
        for row, caption in zip(rows, captions, strict=True):
            words = _tokenizer().encode(caption)[: length - 2]
            known = [self._numbers.get(word, UNKNOWN) for word in words]
            row[: len(known) + 2] = [START, *known, END]
        return rows
