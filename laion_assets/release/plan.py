"""Plan a release: the subset's parts in order, without the rows that lists name."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.knn.subset import MODALITIES, SubsetPart, subset_parts
from laion_assets.lake import Lake
from laion_assets.layout import (
    FILTERED_SUBSET,
    SegmentKey,
)
from laion_assets.removals.active import FOLDERS, REASON_OF_LIST, Lists, read_lists
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

SUBSET: Final = FILTERED_SUBSET
_FORMAT: Final = 2
"""Raise it when the same plan gives other files."""

Rows = NDArray[np.int64]


class ReleaseError(RuntimeError):
    """A release cannot be made, or is not what it says; the message says why."""


@dataclass(frozen=True)
class Piece:
    """The released rows of one part of the subset: ``n`` of them, all but ``left_out``."""

    part: SubsetPart
    left_out: Rows
    n: int

    def rows(self) -> Rows:
        """Numbers of the rows that are released."""
        return np.setdiff1d(np.arange(self.n + len(self.left_out)), self.left_out)


@dataclass(frozen=True)
class Plan:
    """Plan of a release.

    ``partitions`` maps keys to data versions, ``left_out`` reasons to numbers of rows that a list
    names. ``model`` is the key of the one model of all vectors, which have width ``dimension``.
    """

    pieces: Sequence[Piece]
    partitions: Mapping[str, str]
    lists: Mapping[str, str]
    left_out: Mapping[str, int]
    files: int
    made_with: Mapping[str, Any]
    model: str
    dimension: int

    @property
    def samples(self) -> int:
        return sum(piece.n for piece in self.pieces)

    @property
    def digest(self) -> str:
        """Digest that is equal for releases with the same content."""
        content = [_FORMAT, self.partitions, self.lists, self.files, self.made_with]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def bounds(self) -> list[tuple[int, int]]:
        """First row of each file, and the row after its last. Sizes differ by one at most."""
        edges = [self.samples * number // self.files for number in range(self.files + 1)]
        return list(itertools.pairwise(edges))

    def slices(self, first: int, stop: int) -> Iterator[tuple[Piece, Rows]]:
        """Parts and their rows that become the release's rows ``first`` to ``stop``."""
        start = 0
        for piece in self.pieces:
            low, high = max(first - start, 0), min(stop - start, piece.n)
            if low < high:
                yield piece, piece.rows()[low:high]
            start += piece.n


def plan(lake: Lake, files: int, made_with: Mapping[str, Any]) -> Plan:
    """Find the rows of the subset's partitions that the active lists do not name.

    Raises :class:`ReleaseError` if there is nothing to release, or vectors of several models.
    """
    keys = lake.segments(SUBSET)
    # Noted before anything is read, so that replacements are noticed at the end.
    partitions = versions(lake, keys)
    lists = read_lists(lake.current(*FOLDERS))
    pieces: list[Piece] = []
    left_out = dict.fromkeys(REASON_OF_LIST.values(), 0)
    models: dict[tuple[str, int], SegmentKey] = {}
    progress = Progress("release plan", "segments", len(keys), logger)
    for key in keys:
        for part in subset_parts(lake.published(SUBSET, key)):
            listed, counted = listed_rows(part.parquet, lists)
            for reason, n in counted.items():
                left_out[reason] += n
            n = part.rows() - len(listed)
            if n:
                pieces.append(Piece(part, listed, n))
                model = str(lake.manifest(SUBSET, key).metadata.get("model", ""))
                for modality in MODALITIES:
                    models.setdefault((model, part.vectors(modality).shape[1]), key)
        progress.advance()
    if not pieces:
        raise ReleaseError(f"there are no samples to release in {SUBSET} of {lake}")
    if len(models) > 1:
        found = (f"{model or 'unknown'}, width {d} ({key})" for (model, d), key in models.items())
        raise ReleaseError(f"vectors of several models cannot be released: {'; '.join(found)}")
    ((model, dimension),) = models
    return Plan(
        pieces,
        partitions,
        lists.digests,
        left_out,
        min(files, sum(piece.n for piece in pieces)),
        made_with,
        model,
        dimension,
    )


def versions(lake: Lake, keys: Sequence[SegmentKey]) -> dict[str, str]:
    return {str(key): lake.manifest(SUBSET, key).data_version for key in keys}


def listed_rows(path: Path, lists: Lists) -> tuple[Rows, dict[str, int]]:
    """Rows of a parquet file of samples that a list names, and their number by reason.

    A row that both lists name counts for the first list.
    """
    counted: dict[str, int] = {}
    if not lists:
        return np.empty(0, np.int64), counted
    found: list[Rows] = []
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["SAMPLE_ID", "URL", "sha256", "md5"]):
            mask = np.zeros(batch.num_rows, dtype=np.bool_)
            for name, entries in lists.each():
                named = entries.which_rows(batch) & ~mask
                counted[REASON_OF_LIST[name]] = counted.get(REASON_OF_LIST[name], 0) + int(
                    named.sum()
                )
                mask |= named
            found.append(np.flatnonzero(mask) + start)
            start += batch.num_rows
    return np.concatenate([np.empty(0, np.int64), *found]), counted
