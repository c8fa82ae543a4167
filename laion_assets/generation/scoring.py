"""Drawing of captions' samples and their scores, and the scores of real images beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from laion_assets.generation import autoencoder, transformer
from laion_assets.generation.evaluation import OVERVIEW_BEST, Drawn, Real
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.pairs import Images, Pairs
from laion_assets.generation.ranking import Judge, Pictures
from laion_assets.generation.vocabulary import Vocabulary
from laion_assets.tables import write_array
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

REAL_EACH: Final = 4
"""Largest number of real images that are scored per caption."""


def draw(
    gpt: Any,
    vocabulary: Vocabulary,
    captions: Sequence[str],
    options: GenerationOptions,
    number: int = 0,
) -> autoencoder.Codes:
    """Draw the codes of ``options.samples`` pictures of each caption, (captions, samples, codes).

    ``number`` varies the seed.
    """
    text = vocabulary.encode(captions, options.text_tokens)
    rows = np.repeat(text, options.samples, axis=0)
    codes = transformer.sample(gpt, rows, options, seed=options.seed * 10_007 + number)
    return codes.reshape(len(captions), options.samples, -1)


@dataclass(frozen=True)
class Studio:
    """What draws and judges the samples of a demo."""

    vq: Any
    vocabulary: Vocabulary
    judge: Judge
    captions: Sequence[str]
    kept: Path
    """Folder of the codes that are drawn; those that it has are not drawn again."""

    def draw(self, name: str, gpt: Any, options: GenerationOptions) -> list[Drawn]:
        """Draw and score ``options.samples`` pictures of each caption.

        ``name`` says whose they are, in the log and in the folder. As many captions as fill
        ``options.sample_batch`` are drawn together.
        """
        together = max(1, options.sample_batch // options.samples)
        keep = max(options.best, OVERVIEW_BEST)
        total = len(self.captions) * options.samples
        progress = Progress(f"{name}: samples", "pictures", total, logger)
        done = []
        for first in range(0, len(self.captions), together):
            some = self.captions[first : first + together]
            codes = self._codes(f"{name.replace(' ', '-')}-{first:04d}", gpt, some, options, first)
            for caption, of_caption in zip(some, codes, strict=True):
                pixels = autoencoder.decode(self.vq, of_caption, options.vq_batch)
                # At the paper's size, all pictures of all captions would take gigabytes.
                done.append(Drawn.of(caption, pixels, self.judge.score(pixels, caption), keep))
                progress.advance(options.samples)
        return done

    def _codes(
        self, name: str, gpt: Any, captions: Sequence[str], options: GenerationOptions, number: int
    ) -> autoencoder.Codes:
        path = self.kept / f"{name}.npy"
        if not path.exists():
            write_array(path, draw(gpt, self.vocabulary, captions, options, number))
        kept: autoencoder.Codes = np.load(path)
        return kept

    def real(self, pairs: Pairs, images: Images, options: GenerationOptions) -> list[Real]:
        """Score held-out images of each caption that has any, as a ceiling and a chance level."""
        texts = pairs.texts[pairs.held_out]
        rng = np.random.default_rng([options.seed, 5])
        found = []
        for caption in self.captions:
            same = texts == pairs.text(caption)
            if not same.any() or same.all():
                continue
            own = pairs.held_out[same][:REAL_EACH]
            others = rng.permutation(pairs.held_out[~same])[:REAL_EACH]
            pixels = images.pixels(own)
            codes = autoencoder.encode(self.vq, pixels)
            seen: dict[str, Pictures] = {
                "stored": [images.stored(int(number)) for number in own],
                "at_size": pixels,
                "through_codes": autoencoder.decode(self.vq, codes, options.vq_batch),
                "other_caption": images.pixels(others),
            }
            scores = {what: self.judge.score(some, caption) for what, some in seen.items()}
            means = {what: float(some.cosines.mean()) for what, some in scores.items()}
            verdicts = {what: scores[what].verdicts for what in ("stored", "through_codes")}
            found.append(Real(caption, own, pixels, **means, verdicts=verdicts))
        return found
