"""The rules in their order, for links of pages and for rows of URL lists alike.

Where candidates come from does not belong here: :mod:`.extract` reads WAT files,
:mod:`laion_assets.url_lists` lists.
"""

from __future__ import annotations

from dataclasses import dataclass

from laion_assets.funnel import StageCounts
from laion_assets.pairs.language import detect
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.urls import ImageUrls, UrlRefusedError


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges one candidate after another; each method counts what it refuses, and returns None.

    ``counts``: of the stage ``pairs``. A candidate's text, URL and language are asked for in this
    order, and the first refusal ends it.
    """

    rules: PairRules
    counts: StageCounts

    def text(self, cleaned: str) -> str | None:
        """Judge a text that is clean already (:func:`.text.clean_text`); ``""`` means no text."""
        if not cleaned:
            self.counts.reject("no_alt")
            return None
        if reason := self.rules.refused_text(cleaned):
            self.counts.reject(reason, cleaned)
            return None
        return cleaned

    def url(self, src: str | None, urls: ImageUrls) -> str | None:
        """Return the image's absolute URL; ``urls`` resolves it."""
        try:
            url = urls.resolve(src)
        except UrlRefusedError as refused:
            self.counts.reject(refused.reason, src)
            return None
        if reason := self.rules.refused_url(url):
            self.counts.reject(reason, url)
            return None
        return url

    def language(self, text: str) -> tuple[str, float] | None:
        """Return the text's language and its score, as :func:`.language.detect` does."""
        language, score = detect(text)
        if not self.rules.wants_language(language):
            self.counts.reject("language", text)
            return None
        return language, score
