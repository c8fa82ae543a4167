"""Find texts that name minors, by whole words in any case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

HERE: Final = Path(__file__).with_name("words")


@dataclass(frozen=True)
class WordList:
    """Words and phrases, with the header lines of their file (`# name: value`)."""

    words: tuple[str, ...]
    header: dict[str, str]

    @property
    def title(self) -> str:
        """`NAME vVERSION` of the file's header."""
        return f"{self.header.get('name', 'unnamed')} v{self.header.get('version', '?')}"

    @property
    def pattern(self) -> str:
        """RE2 expression that finds any of the words.

        A word ends where letters end, in any script; digits, underscores and hyphens end it, too
        ("kids_2020.jpg"). RE2's own word boundary works for ASCII letters only.
        """
        words = "|".join(re.escape(word).replace(r"\ ", r"[\s_-]+") for word in self.words)
        return rf"(?i)(?:^|[^\pL\pM])(?:{words})(?:[^\pL\pM]|$)"


@cache
def load_words(name_or_path: str = "minors") -> WordList:
    """Read a shipped word list by name, or a file: one word per line, `#` starts a header line.

    Raises ``ValueError`` if there are no words.
    """
    shipped = HERE / f"{name_or_path}.txt"
    path = shipped if shipped.is_file() else Path(name_or_path)
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    header = {}
    for line in lines:
        name, found, value = line.lstrip("# ").partition(": ")
        if line.startswith("#") and found:
            header[name] = value
    words = tuple(line for line in lines if line and not line.startswith("#"))
    if not words:
        raise ValueError(f"the word list {path} has no words")
    return WordList(words, header)


def names_minors(texts: Sequence[str] | Any, words: WordList | None = None) -> NDArray[np.bool_]:
    """Whether each text names minors: bool (n,). ``texts`` is a sequence or an Arrow column."""
    words = words or load_words()
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        texts = pa.array(texts, pa.string())
    # Full-width and other compatibility letters spell the same words.
    plain = pc.utf8_normalize(texts, form="NFKC")
    found = pc.fill_null(pc.match_substring_regex(plain, words.pattern), fill_value=False)
    result: NDArray[np.bool_] = found.to_numpy(zero_copy_only=False).astype(np.bool_)
    return result
