from __future__ import annotations

import pytest

from laion_assets.clip.options import ClipOptions
from laion_assets.clip.thresholds import UnknownThresholdError, threshold_for, thresholds
from laion_assets.filtering.recipe import Recipe


def test_the_papers_model_has_the_papers_threshold() -> None:
    assert threshold_for(ClipOptions().key) == 0.30
    assert "2111.02114" in thresholds()["ViT-B-32/openai"].source


def test_every_threshold_has_a_source() -> None:
    assert all(entry.source for entry in thresholds().values())


def test_a_recipes_own_threshold_goes_first() -> None:
    assert threshold_for("ViT-B-32/openai", Recipe(threshold=0.28)) == 0.28
    assert threshold_for("nobody/knows", Recipe(threshold=0.0)) == 0.0
    assert threshold_for("ViT-B-32/openai", Recipe()) == 0.30


def test_an_unknown_model_says_how_to_set_one() -> None:
    with pytest.raises(UnknownThresholdError, match=r"nobody/knows.*`threshold` in the recipe"):
        threshold_for("nobody/knows", Recipe())
