"""The pairs that are compared on: which each recipe takes, and which are held out.

Whether a pair is looked at, and whether it is held out, is decided by a hash of its picture and by
nothing else. So no recipe has a say, all copies of a picture are on one side, and a recipe that
takes one of each meets all copies that the segments have.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laion_assets.clip.vectors import image_path, open_vectors
from laion_assets.comparison.options import ComparisonOptions
from laion_assets.filtering.one_of_each import clusters_of, largest_of_each
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.subset import choose
from laion_assets.layout import EMBEDDINGS, PARTITIONS, SCORED_PAIRS
from laion_assets.near_duplicates.keys import spread
from laion_assets.near_duplicates.signatures import pixels_of
from laion_assets.tables import ROW_GROUP, batches, part_number, rows_in
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_IN_POOL: Final = 0x706F6F6C
_HELD_OUT: Final = 0x68656C64
_ORDER: Final = 0x6F726465
"""Salts, so that these three choices do not depend on one another."""


class TooFewPairsError(ValueError):
    """There are too few pairs to compare on; the message says where, and what to do."""


@dataclass(frozen=True)
class Segment:
    """The folders of what a segment has published."""

    scored: Path
    embeddings: Path
    near_duplicates: Path


@dataclass(frozen=True)
class Rules:
    """A recipe, and the threshold that it has for the model of the embeddings."""

    recipe: Recipe
    threshold: float


@dataclass(frozen=True)
class Pool:
    """The pairs, by row; rows are in the order of segments and parts.

    ``images``: float16 (n, dim), as stored. ``taken``: by recipe, (n,). Everything else is (n,).
    """

    sample_ids: Rows
    images: NDArray[np.float16]
    texts: pa.ChunkedArray
    similarity: NDArray[np.float64]
    pictures: Rows
    """Cluster of near-duplicates of each image."""
    pixels: NDArray[np.float64]
    """Size of each image's original."""
    held_out: Mask
    """The other pairs may be trained on."""
    taken: Mapping[str, Mask]
    order: NDArray[np.uint64]
    """Random numbers, by a hash of SAMPLE_ID."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def rows_to_train(self, rules: Rules) -> Rows:
        """The rows that a recipe takes and that are not held out, ascending.

        A recipe that takes one of each picture takes its largest original, of these rows.
        """
        rows = np.flatnonzero(~self.held_out & self.taken[rules.recipe.title])
        if rules.recipe.duplicates:
            rows = np.sort(rows[largest_of_each(self.pictures[rows], self.pixels[rows])])
        return rows

    def rows_to_search(self, lowest: float | None, most: int) -> Rows:
        """Held-out rows to find one another among, at most ``most``, in a random order.

        ``lowest``: lowest similarity, or None for any. No text and no picture comes twice, so that
        each row has one right answer.
        """
        held_out = self.held_out if lowest is None else self.held_out & (self.similarity >= lowest)
        rows = np.flatnonzero(held_out)
        rows = rows[np.argsort(self.order[rows])]
        for values in (_numbered(self.texts), self.pictures):
            rows = rows[np.sort(np.unique(values[rows], return_index=True)[1])]
        return rows[:most]


def enough_segments(rows: Mapping[str, int], most: int) -> list[str]:
    """The segments to read, in the order of ``rows``: as many as have ``most`` pairs together.

    ``rows``: by segment, its number of scored pairs. A hash of the segments' names decides which
    ones, so that a new segment changes few of them.
    """
    order = sorted(rows, key=lambda key: hashlib.sha256(key.encode()).digest())
    before = np.cumsum([0, *(rows[key] for key in order)])
    found = set(order[: np.searchsorted(before, most)])
    return [key for key in rows if key in found]


def read_pool(
    segments: Sequence[Segment], rules: Sequence[Rules], options: ComparisonOptions
) -> Pool:
    """Read the segments' pairs, each with its vector, into memory.

    Raises :class:`~laion_assets.filtering.one_of_each.OtherRowsError` if a segment's assets are of
    different rows, :class:`~laion_assets.filtering.recipe.RecipeError` if a recipe asks for the
    scores of a head that the pairs do not have, and :class:`TooFewPairsError` if there are none.
    """
    parts = [PARTITIONS[SCORED_PAIRS].rows.paths(segment.scored) for segment in segments]
    total = rows_in(*(part for of_segment in parts for part in of_segment))
    share = min(1.0, options.pool / max(total, 1))
    progress = Progress("pairs to compare on", "pairs", total, logger)
    read: list[_Read] = []
    for segment, of_segment in zip(segments, parts, strict=True):
        same = {SCORED_PAIRS: segment.scored, EMBEDDINGS: segment.embeddings}
        clusters, at = clusters_of(segment.near_duplicates, same), 0
        for part in of_segment:
            path = image_path(segment.embeddings, part_number(part))
            images, start = open_vectors(path, rows_in(part)), at
            for batch in batches(part, rows=ROW_GROUP):
                table = pa.Table.from_batches([batch])
                pictures = clusters[at : at + len(table)]
                wanted = _uniform(pictures, _IN_POOL) < share
                wanted &= pc.is_valid(table["text"]).to_numpy()
                rows = table.filter(pa.array(wanted))
                read.append(
                    _Read(
                        rows.select(_COLUMNS),
                        images[at - start + np.flatnonzero(wanted)],
                        pictures[wanted],
                        [_taken(rows, one) for one in rules],
                    )
                )
                at += len(table)
                progress.advance(len(table))
    if not read:
        raise TooFewPairsError("the segments have no scored pairs to compare on")
    return _pool(read, rules, options)


class _Read(NamedTuple):
    """Pairs of one batch that are in the pool."""

    rows: pa.Table
    images: NDArray[np.float16]
    pictures: Rows
    taken: list[Mask]


_COLUMNS: Final = ["SAMPLE_ID", "text", "similarity", "width", "height"]


def _pool(read: Sequence[_Read], rules: Sequence[Rules], options: ComparisonOptions) -> Pool:
    tables, images, clusters, taken = zip(*read, strict=True)
    table = pa.concat_tables(tables)
    ids: Rows = table["SAMPLE_ID"].to_numpy()
    pictures = np.concatenate(clusters)
    return Pool(
        sample_ids=ids,
        images=np.concatenate(images),
        texts=table["text"],
        similarity=table["similarity"].to_numpy(),
        pictures=pictures,
        pixels=pixels_of(table),
        held_out=are_held_out(pictures, options.held_out_share),
        taken={
            one.recipe.title: np.concatenate([of_part[number] for of_part in taken])
            for number, one in enumerate(rules)
        },
        order=spread(ids ^ _ORDER),
    )


def are_held_out(pictures: Rows, share: float) -> Mask:
    """Whether each picture is held out, (n,); about ``share`` of all pictures are."""
    return _uniform(pictures, _HELD_OUT) < share


def _uniform(pictures: Rows, salt: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each picture, (n,), by a hash of its cluster and of the salt."""
    return spread(pictures ^ salt) / 2.0**64


def _taken(rows: pa.Table, rules: Rules) -> Mask:
    taken = np.zeros(len(rows), np.bool_)
    taken[choose(rows, rules.recipe, rules.threshold)[0]] = True
    return taken


def _numbered(column: pa.ChunkedArray) -> NDArray[Any]:
    """A number for each value, (n,): the same for equal ones."""
    values: NDArray[Any] = column.combine_chunks().dictionary_encode().indices.to_numpy()
    return values
