"""Drawing with the models of a finished demo: ``laion-assets draw``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from laion_assets.generation import autoencoder, transformer
from laion_assets.generation.autoencoder import WrongWeightsError
from laion_assets.generation.dalle import AUTOENCODER, OPTIONS, TRANSFORMER, VOCABULARY
from laion_assets.generation.evaluation import Drawn
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.ranking import Judge
from laion_assets.generation.scoring import draw
from laion_assets.generation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel


def draw_caption(
    folder: Path, caption: str, clip: ClipModel, seed: int, device: str, samples: int | None = None
) -> Drawn:
    """Draw a caption's samples with the models in ``folder`` and let CLIP score them.

    ``samples`` is their number; None for as many as the demo drew.

    Raises ``FileNotFoundError`` if the folder holds no finished demo, :class:`WrongWeightsError`
    if its parts come from different ones.
    """
    from laion_assets.clip.model import choose_device

    for name in (OPTIONS, VOCABULARY, TRANSFORMER, AUTOENCODER):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} holds no finished demo: {name} is missing")
    stored = json.loads((folder / OPTIONS).read_bytes())
    if stored.get("vq_weights", "") is None:
        # An earlier version's: its models have not learnt to do without a caption.
        none = {"caption_dropout": 0.0, "guidance": 1.0, "guidance_compared": []}
        stored |= {"vq_weights": "", **none}
    options = GenerationOptions.model_validate(stored)
    if samples is not None:
        options = options.model_copy(update={"samples": samples})
    vocabulary = Vocabulary(json.loads((folder / VOCABULARY).read_bytes())["clip_tokens"])
    where = choose_device(device)
    gpt = transformer.load(folder / TRANSFORMER).to(where)
    if gpt.config.vocab_size != options.codebook + len(vocabulary):
        raise WrongWeightsError(
            f"{folder / TRANSFORMER} has {gpt.config.vocab_size:,} tokens, but {OPTIONS} has"
            f" {options.codebook:,} and {VOCABULARY} {len(vocabulary):,}: they do not belong"
            " together"
        )
    vq = autoencoder.load(folder / AUTOENCODER, options).to(where)
    codes = draw(gpt, vocabulary, [caption], options, seed)[0]
    pixels = autoencoder.decode(vq, codes, options.vq_batch)
    return Drawn.of(caption, pixels, Judge(clip).score(pixels, caption), len(pixels))
