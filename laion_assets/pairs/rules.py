"""Options of this package: which links become pairs."""

from __future__ import annotations

from pydantic import Field, model_validator

from laion_assets.options import Options


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
    languages: list[str] = Field(
        ["en"],
        description="Wanted languages as CLD2's codes (ISO 639-1 where one exists); "
        "an empty list takes any, including unknown",
    )
    keep_unknown_language: bool = Field(
        False, description="Keep texts whose language is unknown to the detector"
    )

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
        return self.keep_unknown_language if code == "unknown" else code in self.languages
