"""Drawing with what a finished demo has left: ``laion-assets draw``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from laion_assets.generation import autoencoder, transformer
from laion_assets.generation.dalle import AUTOENCODER, OPTIONS, TRANSFORMER, VOCABULARY
from laion_assets.generation.evaluation import Drawn, draw
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.ranking import similarities
from laion_assets.generation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel


def draw_caption(folder: Path, caption: str, clip: ClipModel, seed: int, device: str) -> Drawn:
    """Draw a caption's samples with the models in ``folder``, and have CLIP score them.

    Raises ``FileNotFoundError`` if it holds no finished demo.
    """
    from laion_assets.clip.model import choose_device

    options = GenerationOptions.model_validate_json((folder / OPTIONS).read_bytes())
    words = json.loads((folder / VOCABULARY).read_bytes())["clip_tokens"]
    where = choose_device(device)
    gpt = transformer.load(folder / TRANSFORMER).to(where)
    vq = autoencoder.load(folder / AUTOENCODER, options).to(where)
    codes = draw(gpt, Vocabulary(words), caption, options, seed)
    pixels = autoencoder.decode(vq, codes, options.vq_batch)
    return Drawn(caption, pixels, similarities(clip, pixels, caption))
