"""Options of this package: which links become pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pydantic import Field, field_validator, model_validator

from laion_assets.options import Options
from laion_assets.pairs.language import ENGLISH, UNKNOWN

_FILE_NAME: Final = re.compile(r"[^\s/]+\.(?:jpe?g|png|gif|webp|svg|bmp|tiff?|avif|heic)", re.I)
_PLACEHOLDER: Final = re.compile(
    r"(?:^|[/_.-])(?:1x1|blank|clear|dot|empty|loading|pixel|placeholder|spacer|transparent|tracking"
    r"|lazy(?:load)?)(?:[_.-][^/]*)?$",
    re.I,
)

_TRACKER: Final = re.compile(
    r"https?://(?:(?:[^/:]+\.)?(?:scorecardresearch\.com|quantserve\.com|google-analytics\.com"
    r"|doubleclick\.net|statcounter\.com|histats\.com|mc\.yandex\.(?:ru|com)|counter\.yadro\.ru"
    r"|top-fwz1\.mail\.ru|bat\.bing\.com|px\.ads\.linkedin\.com|(?:pixel|stats)\.wp\.com)[/:]"
    r"|(?:www\.)?facebook\.com/tr(?:/|$))"
)


class PairRules(Options):
    """Bounds on text and URL, and the wanted languages."""

    min_text_chars: int = Field(
        5, ge=1, description="Minimum characters of the cleaned alt text (paper, section 2.1.1)"
    )
    max_text_chars: int = Field(
        4096, ge=1, description="Maximum characters of the cleaned alt text"
    )
    max_url_chars: int = Field(
        2048, ge=12, le=65_536, description="Maximum characters of the resolved image URL"
    )
    refused_suffixes: list[str] = Field(
        [".svg", ".gif", ".ico"],
        description="Endings of URL paths that are refused, in lower case: drawings, animations and"
        " icons, which LAION-400M's workers left out as well (6.5 % of otherwise kept pairs are"
        " .svg); an empty list refuses none",
    )
    refuse_placeholders: bool = Field(
        False,
        description="Refuse URLs whose file is named like a placeholder or a tracking pixel, such"
        " as spacer.png or 1x1.jpg, and those of well-known trackers",
    )
    max_texts_per_url: int = Field(
        0,
        ge=0,
        description="Maximum different texts of one URL in a segment; all pairs of a URL that has"
        " more are refused. 0 means no limit; 3 refuses 5.8 % of otherwise kept pairs",
    )
    refuse_file_name_texts: bool = Field(
        False, description="Refuse alt texts that are a file's name, such as IMG_0815.JPG"
    )
    min_words: int = Field(
        1, ge=1, description="Minimum words of the cleaned alt text, as white space parts them"
    )
    languages: list[str] = Field(
        ["en"],
        description="Wanted languages as CLD2's codes (ISO 639-1 where one exists); "
        "an empty list takes any, including unknown",
    )
    keep_unknown_language: bool = Field(
        False, description="Keep texts whose language is unknown to the detector"
    )

    @field_validator("refused_suffixes")
    @classmethod
    def _lower_case(cls, suffixes: list[str]) -> list[str]:
        if wrong := [suffix for suffix in suffixes if not suffix or suffix != suffix.lower()]:
            raise ValueError(f"not an ending in lower case: {wrong}")
        return suffixes

    @model_validator(mode="after")
    def _bounds_in_order(self) -> PairRules:
        if self.min_text_chars > self.max_text_chars:
            raise ValueError("min_text_chars is above max_text_chars")
        return self

    def wants_language(self, code: str) -> bool:
        """Whether a text of this language is kept.

        ``code`` is what :func:`laion_assets.pairs.language.detect` returns.
        """
        if not self.languages:
            return True
        return self.keep_unknown_language if code == UNKNOWN else code in self.languages

    @property
    def wants_english_alone(self) -> bool:
        """Whether texts of all other languages, known or not, are refused."""
        return self.languages == [ENGLISH] and not self.keep_unknown_language

    def refused_texts(self, texts: Sequence[str]) -> list[str | None]:
        """The reason for which each cleaned text is refused, or None; ``""`` is no text."""
        least, most, words = self.min_text_chars, self.max_text_chars, self.min_words
        names, reasons = self.refuse_file_name_texts, list[str | None]()
        for text in texts:
            reason = None
            if not text:
                reason = "no_alt"
            elif len(text) < least:
                reason = "alt_too_short"
            elif len(text) > most:
                reason = "alt_too_long"
            elif words > 1 and len(text.split()) < words:
                reason = "alt_few_words"
            elif names and _FILE_NAME.fullmatch(text):
                reason = "alt_file_name"
            reasons.append(reason)
        return reasons

    def refused_url(self, url: str) -> str | None:
        """The reason for which a resolved URL is refused, or None."""
        path = url.partition("?")[0]
        if path.lower().endswith(tuple(self.refused_suffixes)):
            return "url_suffix"
        if self.refuse_placeholders and (_PLACEHOLDER.search(path) or _TRACKER.match(path)):
            return "url_placeholder"
        return None
