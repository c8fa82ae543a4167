from __future__ import annotations

import pytest
from pydantic import ValidationError

from laion_assets.clip.options import ClipOptions, public_key


def test_the_default_is_the_papers_model() -> None:
    assert ClipOptions().key == "ViT-B-32/openai"


def test_models_that_bring_their_weights_have_a_key_of_one_name() -> None:
    assert ClipOptions(model="hf-hub:org/repo").key == "hf-hub:org/repo"


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValidationError, match="precision"):
        ClipOptions(precision="int4")


@pytest.mark.parametrize(
    ("key", "public"),
    [
        ("ViT-B-32/openai", "ViT-B-32/openai"),
        ("hf-hub:laion/CLIP-ViT-B-32", "hf-hub:laion/CLIP-ViT-B-32"),
        ("local-dir:/home/somebody/secret/clip/", "local-dir:clip"),
        ("ViT-B-32//home/somebody/secret/clip.pt", "ViT-B-32/clip.pt"),
        ("ViT-B-32/C:\\somebody\\clip.pt", "ViT-B-32/clip.pt"),
    ],
)
def test_a_key_is_published_without_the_path_of_its_weights(key: str, public: str) -> None:
    assert public_key(key) == public
