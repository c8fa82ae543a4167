"""The rules in their order, for links of pages and for rows of URL lists alike.

Many candidates are judged at once, column by column: a method call for each would cost as much as
the rules. Where candidates come from does not belong here: :mod:`.extract` reads WAT files,
:mod:`laion_assets.url_lists` lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from laion_assets.funnel import StageCounts
from laion_assets.pairs.language import detect, is_never_english
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.urls import Base, UrlRefusedError, image_urls


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges candidates; each method counts those that it refuses, and has None in their place.

    ``counts``: of the stage ``pairs``. Candidates' texts, URLs and languages are asked for in this
    order, each for those alone that were not refused before (:func:`passed`).
    """

    rules: PairRules
    counts: StageCounts

    def texts(self, cleaned: Sequence[str]) -> list[str | None]:
        """Judge texts that are clean already (:func:`.text.clean_text`); ``""`` means no text."""
        texts: list[str | None] = []
        for text, reason in zip(cleaned, self.rules.refused_texts(cleaned), strict=True):
            if reason:
                self.counts.reject(reason, text or None)
            texts.append(None if reason else text)
        return texts

    def urls(self, srcs: Sequence[str | None], bases: Sequence[Base]) -> list[str | None]:
        """Return the images' absolute URLs, each resolved against its base."""
        refused_url, reject = self.rules.refused_url, self.counts.reject
        urls: list[str | None] = []
        for src, url in zip(srcs, image_urls(srcs, bases, self.rules.max_url_chars), strict=True):
            if isinstance(url, UrlRefusedError):
                reject(url.reason, src)
            elif reason := refused_url(url):
                reject(reason, url)
            else:
                urls.append(url)
                continue
            urls.append(None)
        return urls

    def languages(self, texts: Sequence[str]) -> list[tuple[str, float] | None]:
        """Return each text's language and its score, as :func:`.language.detect` does."""
        english_alone, wants = self.rules.wants_english_alone, self.rules.wants_language
        found: list[tuple[str, float] | None] = []
        for text in texts:
            # Nearly all texts of ASCII have a letter, which is Latin.
            if not english_alone or text.isascii() or not is_never_english(text):
                detected = detect(text)
                if wants(detected[0]):
                    found.append(detected)
                    continue
            self.counts.reject("language", text)
            found.append(None)
        return found


def passed(judged: Sequence[Any], *columns: Sequence[Any]) -> list[list[Any]]:
    """The values of each column, and of ``judged`` itself first, where it is not None."""
    kept = [value is not None for value in judged]
    return [list(compress(column, kept)) for column in (judged, *columns)]
