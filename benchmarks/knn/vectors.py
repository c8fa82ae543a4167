"""Image and text vectors with the structure of CLIP's, in any number, from a seed.

No model is run: what matters to an index is the geometry, which follows what is known of CLIP
ViT-B/32 on web pairs:
- a *cone*: all images share a mean direction, all texts another one (the modality gap), so that
  two random images have a cosine of about 0.5, and so have two random texts;
- a *mixture*: a pair belongs to one of 20,000 topics of heavy-tailed size (Zipf, exponent 0.9;
  the largest holds some 3 %), which are grouped under 300 themes;
- a *low intrinsic dimension*: within a topic, samples differ along 24 directions of falling
  variance, which the topics of a theme share; in addition there is noise in all directions, with a
  spectrum that falls as a power of the rank;
- *pairs*: image and text share the topic and part of what distinguishes the sample, so that a
  pair's cosine is about 0.3, and that of an image with another's text about 0.1;
- *near-duplicates*: one image in ten is a slightly changed copy of another, as on the web.

They are float16 of unit norm, as a subset has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TOPICS: Final = 20_000
THEMES: Final = 300
LOCAL: Final = 24
BLOCK: Final = 50_000


@dataclass(frozen=True)
class World:
    """Topics, themes and directions that all blocks share."""

    topics: Floats
    theme_of: npt.NDArray[np.int64]
    size: npt.NDArray[np.float64]
    local: Floats
    spectrum: Floats
    image_mean: Floats
    text_mean: Floats
    gap: Floats

    @classmethod
    def make(cls, d: int, seed: int = 0) -> World:
        random = np.random.default_rng(seed)

        def normal(*shape: int) -> Floats:
            return random.standard_normal(shape, dtype=np.float32)

        spectrum: Floats = (np.arange(1, d + 1) ** -0.5).astype(np.float32)
        spectrum /= np.sqrt((spectrum**2).sum())
        rotation = np.linalg.qr(normal(d, d))[0].astype(np.float32)
        themes: Any = (normal(THEMES, d) * spectrum) @ rotation
        theme_of = random.integers(0, THEMES, TOPICS)
        topics: Floats = 0.65 * themes[theme_of] + 0.75 * (normal(TOPICS, d) * spectrum) @ rotation
        size = np.arange(1, TOPICS + 1, dtype=np.float64) ** -0.9
        local = normal(THEMES, LOCAL, d) / np.sqrt(d)
        local *= (np.arange(1, LOCAL + 1, dtype=np.float32) ** -0.5)[None, :, None]
        local /= np.sqrt((np.arange(1, LOCAL + 1) ** -1.0).sum()).astype(np.float32)
        means = np.linalg.qr(normal(d, 2))[0].T.astype(np.float32)
        return cls(
            topics,
            theme_of,
            size / size.sum(),
            local,
            spectrum * 1.0,
            means[0],
            means[1],
            rotation,
        )


def blocks(
    world: World, n: int, seed: int
) -> Iterator[tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]]:
    """Yield ``n`` pairs in blocks ``(image, text)``, each float16 (up to 50,000, d), unit norm."""
    d = world.topics.shape[1]
    for number, start in enumerate(range(0, n, BLOCK)):
        random = np.random.default_rng([seed, number])
        rows = min(BLOCK, n - start)
        topic = random.choice(TOPICS, rows, p=world.size)
        own = random.standard_normal((rows, LOCAL), dtype=np.float32)
        image_own = own + 0.3 * random.standard_normal(own.shape, dtype=np.float32)
        text_own = own + 0.6 * random.standard_normal(own.shape, dtype=np.float32)
        copies = np.flatnonzero(random.random(rows) < 0.1)
        original = random.integers(0, rows, len(copies))
        topic[copies], image_own[copies] = topic[original], image_own[original]
        theme = world.theme_of[topic]
        order = np.argsort(theme, kind="stable")
        image, text = world.topics[topic], 0.9 * world.topics[topic]
        bounds = np.searchsorted(theme[order], np.arange(THEMES + 1))
        for theme_, (first, last) in enumerate(pairwise(bounds)):
            rows_of = order[first:last]
            image[rows_of] += 0.6 * image_own[rows_of] @ world.local[theme_]
            text[rows_of] += 0.6 * text_own[rows_of] @ world.local[theme_]
        noise = random.standard_normal((rows, d), dtype=np.float32) * world.spectrum
        noise[copies] = noise[original] + 0.1 * noise[copies]
        image += 0.45 * noise @ world.gap
        noise = random.standard_normal((rows, d), dtype=np.float32) * world.spectrum
        text += 0.75 * noise @ world.gap
        image += 1.15 * world.image_mean
        text += 1.4 * world.text_mean + 0.2 * world.image_mean
        yield _unit(image), _unit(text)


def _unit(vectors: Floats) -> npt.NDArray[np.float16]:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16)
