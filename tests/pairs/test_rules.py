from __future__ import annotations

import pytest
from pydantic import ValidationError

from laion_assets.pairs.rules import PairRules


def test_defaults_are_the_papers() -> None:
    rules = PairRules()
    assert rules.min_text_chars == 5
    assert rules.languages == ["en"]
    assert rules.wants_language("en")
    assert not rules.wants_language("de")
    assert not rules.wants_language("unknown")


def test_languages() -> None:
    assert PairRules(languages=[]).wants_language("unknown")
    some = PairRules(languages=["de", "fr"], keep_unknown_language=True)
    assert [some.wants_language(code) for code in ("de", "fr", "en", "unknown")] == [
        True,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_text_chars": 0},
        {"min_text_chars": 20, "max_text_chars": 10},
        {"max_url_chars": 0},
        {"languages": "en"},
        {"refused_suffixes": [".SVG"]},
        {"refused_suffixes": [""]},
        {"min_words": 0},
    ],
)
def test_wrong_values(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PairRules.model_validate(wrong)
