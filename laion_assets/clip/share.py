"""One shard's share of a folder of embeddings: taken over or computed, and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laion_assets.clip.decode import Prepared, Shard, batches
from laion_assets.clip.earlier import Digests, Earlier, as_digests, digests_of, write_digests
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.vectors import PLACES
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.layout import EMBEDDINGS
from laion_assets.tables import VectorsWriter, part_path, write_table

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel


def raw_digests(raw: Path, number: int) -> Path:
    """Place of the digests of a shard's images, below ``raw``."""
    return raw / f"{number:05d}.npy"


@dataclass(frozen=True)
class Found:
    """Samples of one shard that an earlier version has, without their vectors.

    ``rows``: (n,) int64, their numbers among the shard's. ``digests``: (n, 16) uint8, of their
    images. ``at``: (n,) int64, their rows in the earlier version.
    """

    rows: NDArray[np.int64]
    digests: Digests
    at: NDArray[np.int64]

    @classmethod
    def in_(cls, earlier: Earlier, shard: Shard) -> Found:
        """Read the shard's images and look for its samples."""
        digests = digests_of(shard.images, shard.rows["key"].to_pylist())
        at = earlier.find(shard.rows, digests)
        rows = np.flatnonzero(at >= 0).astype(np.int64)
        return cls(rows, digests[rows], at[rows])

    def share(self, earlier: Earlier, empty: Share) -> Share:
        """``empty``: what there is without samples."""
        if not len(self.rows):
            return empty
        vectors = tuple(earlier.vectors(place, self.at) for place in earlier.places)
        return Share(self.rows, self.digests, vectors)


@dataclass(frozen=True)
class Share:
    """Samples of one shard that are kept.

    ``rows``: (n,) int64, their numbers among the shard's. ``digests``: (n, 16) uint8, of their
    images. ``vectors``: (n, dim) float16, of the images and, if there are captions, of the texts.
    """

    rows: NDArray[np.int64]
    digests: Digests
    vectors: tuple[NDArray[Any], ...]

    @classmethod
    def empty(cls, dim: int, captions: bool) -> Share:
        vectors = np.zeros((0, dim), np.float16)
        return cls(np.zeros(0, np.int64), as_digests([]), (vectors,) * (1 + captions))

    def with_(self, other: Share) -> Share:
        """Both, in the order of the shard."""
        if not len(self.rows):
            return other
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows)
        both = zip(self.vectors, other.vectors, strict=True)
        return Share(
            rows[order],
            np.concatenate([self.digests, other.digests])[order],
            tuple(np.concatenate(pair)[order] for pair in both),
        )

    def write(self, raw: Path, shard: Shard) -> StageCounts:
        """Write the rows and what belongs to them below ``raw``; return the shard's counts."""
        write_digests(raw_digests(raw, shard.number), self.digests)
        for place, vectors in zip(PLACES, self.vectors, strict=False):
            with VectorsWriter(place(raw, shard.number), vectors.shape[1]) as writer:
                writer.write(vectors)
        rows = shard.rows.take(pa.array(self.rows))
        write_table(part_path(raw, shard.number), rows)
        return _count(shard.rows, rows["key"])


def computed(
    samples: Iterator[Prepared],
    model: ClipModel,
    options: ClipOptions,
    advance: Callable[[int], None],
    empty: Share,
) -> Share:
    """Embed a shard's images as they come, then the texts of those that decoded, if there are any,
    by length.

    Batches end with the shard, so its bytes do not depend on what else this call embeds.
    """
    kept: list[int] = []
    digests: list[bytes] = []
    tokens: list[NDArray[np.int64]] = []

    def pixels(batch: Sequence[Prepared]) -> list[NDArray[np.uint8]]:
        for sample in batch:
            kept.append(sample.row)
            digests.append(sample.digest)
            if sample.tokens is not None:
                tokens.append(sample.tokens)
        return [sample.pixels for sample in batch]

    images = [empty.vectors[0]]
    for vectors in model.embed_images(map(pixels, batches(samples, options.batch_size))):
        images.append(vectors.astype(np.float16))
        advance(len(vectors))
    if not kept:
        return empty
    texts = [model.embed_tokens(np.stack(tokens)).astype(np.float16)] if tokens else []
    return Share(np.array(kept, np.int64), as_digests(digests), (np.concatenate(images), *texts))


def _count(rows: pa.Table, kept: Any) -> StageCounts:
    counts = StageCounts(EMBEDDINGS)
    counts.keep(len(kept))
    lost = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=kept)))
    urls = lost["url"].slice(0, EXAMPLES_KEPT).to_pylist()
    for url in urls:
        counts.reject("undecodable", url)
    counts.reject("undecodable", n=len(lost) - len(urls))
    return counts
