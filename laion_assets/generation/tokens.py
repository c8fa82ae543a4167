"""Every pair as tokens on disk: images and texts are encoded once, not once per epoch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laion_assets.generation import autoencoder
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.pairs import Images, Pairs
from laion_assets.generation.transformer import Batch
from laion_assets.generation.vocabulary import Vocabulary
from laion_assets.tables import write_array
from laion_assets.work import Progress

logger = logging.getLogger(__name__)


def vocabulary_of(pairs: Pairs) -> Vocabulary:
    """Vocabulary of the training captions."""
    trained = np.zeros(len(pairs), np.bool_)
    trained[pairs.training] = True
    return Vocabulary.of(
        caption
        for number, shard in enumerate(pairs.shards)
        for caption, seen in zip(shard.captions(), trained[pairs.in_order(number)], strict=True)
        if seen
    )


class Tokens:
    """The tokens of pairs by number, memory-mapped."""

    def __init__(self, folder: Path, pairs: Pairs) -> None:
        self._pairs = pairs
        numbers = range(len(pairs.shards))
        self._text = [np.load(_text(folder, number), mmap_mode="r") for number in numbers]
        self._codes = [np.load(_codes(folder, number), mmap_mode="r") for number in numbers]

    def text(self, numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Tokens of captions, uint16 (n, text_tokens)."""
        return self._of(self._text, numbers)

    def codes(self, numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Codes of images, uint16 (n, image_tokens)."""
        return self._of(self._codes, numbers)

    def batch(self, captions: NDArray[np.int64], images: NDArray[np.int64]) -> Batch:
        """Tokens of the captions of some pairs, and codes of the images of others."""
        return self.text(captions), self.codes(images)

    def _of(self, parts: Sequence[Any], numbers: NDArray[np.int64]) -> NDArray[np.uint16]:
        found = np.empty((len(numbers), parts[0].shape[1]), np.uint16)
        shards, rows = self._pairs.places(numbers)
        for shard in np.unique(shards):
            of_shard = shards == shard
            found[of_shard] = parts[shard][rows[of_shard]]
        return found


def write_tokens(
    folder: Path,
    pairs: Pairs,
    images: Images,
    model: Any,
    vocabulary: Vocabulary,
    options: GenerationOptions,
) -> Tokens:
    """Encode every pair, shard by shard; shards that an earlier call encoded are skipped."""
    done = [_codes(folder, number).exists() for number in range(len(pairs.shards))]
    progress = Progress("tokens", "shards", len(done), logger, resumed=sum(done))
    for number, encoded in enumerate(done):
        if encoded:
            continue
        captions = pairs.shards[number].captions()
        write_array(_text(folder, number), vocabulary.encode(captions, options.text_tokens))
        rows = pairs.in_order(number)
        size = options.vq_batch
        batches = (rows[start : start + size] for start in range(0, len(rows), size))
        coded = [autoencoder.encode(model, pixels) for pixels in images.batches(batches)]
        write_array(_codes(folder, number), np.concatenate(coded))
        progress.advance()
    return Tokens(folder, pairs)


def _text(folder: Path, number: int) -> Path:
    return folder / f"text-{number:05d}.npy"


def _codes(folder: Path, number: int) -> Path:
    return folder / f"codes-{number:05d}.npy"
