from __future__ import annotations

import pytest
from pydantic import ValidationError

from laion_assets.clip.model import load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.thresholds import UnknownThresholdError, threshold_for, thresholds
from laion_assets.filtering.recipe import Recipe, load_recipe


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


TINY = "laion-assets-tiny/laion-assets-tiny"


def test_other_weights_under_the_same_name_do_not_get_its_threshold() -> None:
    options = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny")
    version = load_clip(options).version
    for recipe in (Recipe(), load_recipe("laion5b-en")):
        known = recipe.threshold_of(TINY, version)
        # Before the model is loaded, its name is believed; the same weights count elsewhere.
        assert recipe.threshold_of(TINY) == known
        assert recipe.threshold_of("local-dir:/moved", version) == known
        with pytest.raises(UnknownThresholdError, match=rf"version 0{{16}} \(only for .*{version}"):
            recipe.threshold_of(TINY, "0" * 16)
        # What is published under a name stays the same.
        assert recipe.threshold_of("ViT-B-32/openai", "0" * 16) > 0.2


@pytest.mark.parametrize("model", ["local-dir:/mine", "ViT-B-32//mine/it.pt", "ViT-B-32/it.pt"])
def test_a_name_that_may_hold_other_weights_needs_their_version(model: str) -> None:
    with pytest.raises(ValidationError, match="name their version"):
        Recipe(name="own", thresholds={model: 0.3})
    recipe = Recipe(name="own", thresholds={f"{model}@0123456789abcdef": 0.3})
    assert recipe.threshold_of(model, "0123456789abcdef") == recipe.threshold_of(model) == 0.3
    with pytest.raises(UnknownThresholdError, match="only for version 0123456789abcdef"):
        recipe.threshold_of(model, "f" * 16)


@pytest.mark.parametrize("moved", ["local-dir:/elsewhere/mine", "ViT-B-32//elsewhere/it.pt"])
def test_the_version_decides_of_weights_that_lie_elsewhere(moved: str) -> None:
    recipe = Recipe(name="own", thresholds={"local-dir:mine@0123456789abcdef": 0.3})
    assert recipe.threshold_of(moved) == recipe.threshold_of(moved, "0123456789abcdef") == 0.3
    with pytest.raises(UnknownThresholdError, match=r"version f{16} \(only for local-dir:mine@01"):
        recipe.threshold_of(moved, "f" * 16)
    # A published name says itself that it is another model; this package's own are no folder's.
    for model, other in (("ViT-L-14/openai", recipe), (moved, load_recipe("laion5b-en"))):
        with pytest.raises(UnknownThresholdError, match="only for"):
            other.threshold_of(model)
