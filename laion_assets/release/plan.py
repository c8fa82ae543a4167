"""Plan a release: the subset's parts in order, without the rows that lists name."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import texts_among
from laion_assets.filtering.subset import TakenWith
from laion_assets.heads.head import in_all
from laion_assets.knn.subset import SubsetPart, subset_parts
from laion_assets.lake import Lake, Manifest
from laion_assets.layout import (
    FILTERED_SUBSET,
    PICTURE_FILES,
    SegmentKey,
)
from laion_assets.removals.active import FOLDERS, REASON_OF_LIST, Lists, read_lists
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

SUBSET: Final = FILTERED_SUBSET
NO_CAPTION: Final = "no_caption"
"""Why images without captions are left out: each row of a release has a text and its vector."""
_FORMAT: Final = 3
"""Raise it when the same plan gives other files."""

Rows = NDArray[np.int64]


class ReleaseError(RuntimeError):
    """A release cannot be made, or is not what it says; the message says why."""


@dataclass(frozen=True)
class Piece:
    """One part of the subset: ``n`` of its rows are released, all but ``left_out``."""

    part: SubsetPart
    left_out: Rows
    n: int

    def rows(self) -> Rows:
        """Numbers of the rows that are released."""
        return np.delete(np.arange(self.n + len(self.left_out)), self.left_out)


@dataclass(frozen=True)
class Partitions:
    """The subset's partitions as a release found them.

    ``manifests``: without the files that are no table. ``bare``: those whose images have no
    captions. ``noted``: what :meth:`Lake.versions` said of the partitions.
    """

    noted: Mapping[SegmentKey | None, str]
    manifests: Mapping[SegmentKey, Manifest]
    bare: Collection[SegmentKey]

    @classmethod
    def read(cls, lake: Lake) -> Partitions:
        # Noted before anything is read, so that replacements are noticed at the end.
        noted = lake.versions(SUBSET)
        manifests, bare = {}, set()
        for key, manifest in lake.manifests(SUBSET).items():
            if key is not None:
                manifests[key] = _without_files(manifest)
                if not texts_among(file["name"] for file in manifest.files):
                    bare.add(key)
        return cls(noted, dict(sorted(manifests.items())), bare)

    @property
    def versions(self) -> dict[str, str]:
        """Key -> data version."""
        return {str(key): manifest.data_version for key, manifest in self.manifests.items()}

    def unchanged(self, lake: Lake) -> bool:
        """Whether the lake has the same content still. Only what was replaced is read again."""
        now = lake.versions(SUBSET)
        return now.keys() == self.noted.keys() and all(
            lake.manifest(SUBSET, key).data_version == manifest.data_version
            for key, manifest in self.manifests.items()
            if now[key] != self.noted[key]
        )


def _without_files(manifest: Manifest) -> Manifest:
    """The manifest with those files alone whose rows it counts: ten thousand are kept."""
    return replace(manifest, files=[file for file in manifest.files if "rows" in file])


@dataclass(frozen=True)
class Plan:
    """Plan of a release.

    ``left_out`` maps reasons to numbers of rows that a list names, or that have no caption.
    ``model`` is the one that made all vectors, which have width ``dimension``.
    """

    pieces: Sequence[Piece]
    partitions: Partitions
    lists: Mapping[str, str]
    left_out: Mapping[str, int]
    files: int
    made_with: Mapping[str, Any]
    model: ModelIdentity
    dimension: int
    heads: Mapping[str, str]
    """Name -> digest of the heads that scored all samples alike."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the release's metadata."""
        columns = [f"{schemas.SCORE_PREFIX}{name}" for name in sorted(self.heads)]
        return schemas.with_scores(schemas.SUBSET, columns)

    @property
    def samples(self) -> int:
        return sum(piece.n for piece in self.pieces)

    @property
    def digest(self) -> str:
        """Digest that is equal for releases with the same content."""
        content = [_FORMAT, self.partitions.versions, self.lists, self.files, self.made_with]
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

    def verify(self, lake: Lake, first: int, stop: int, verified: set[SegmentKey]) -> None:
        """Compare the partitions of the release's rows ``first`` to ``stop`` with their digests.

        Those in ``verified`` are not compared again; the others are added to it. Raises
        :class:`~laion_assets.lake.DamagedFilesError`.
        """
        keys = {SegmentKey.of_folder(piece.part.folder) for piece, _ in self.slices(first, stop)}
        for key in sorted(keys - verified):
            lake.whole(SUBSET, key, but=[PICTURE_FILES])
            verified.add(key)


def plan(lake: Lake, files: int, made_with: Mapping[str, Any]) -> Plan:
    """Find the rows of the subset's partitions that have captions and that no active list names.

    Rows are counted by the manifests; they are read only if there is a list to look them up in.
    No file is compared with its digest here: see :meth:`Plan.verify`. Raises :class:`ReleaseError`
    if there is nothing to release, or vectors of several models, and
    :class:`~laion_assets.clip.identity.UnknownModelError` if a partition does not record its model.
    """
    partitions = Partitions.read(lake)
    lists = read_lists(lake.current(*FOLDERS))
    pieces: list[Piece] = []
    left_out = dict.fromkeys(REASON_OF_LIST.values(), 0)
    models: dict[tuple[str, int], tuple[SegmentKey, ModelIdentity]] = {}
    heads: list[Mapping[str, str]] = []
    progress = Progress("release plan", "segments", len(partitions.manifests), logger)
    for key, manifest in partitions.manifests.items():
        taken_with = TakenWith.recorded(manifest.metadata, f"{SUBSET} of {key}")
        model = taken_with.identity
        heads.append(taken_with.heads)
        of_key: list[Piece] = []
        folder = lake.folder(SUBSET, key)
        for part, rows in _parts(folder, manifest):
            if key in partitions.bare:
                left_out[NO_CAPTION] = left_out.get(NO_CAPTION, 0) + rows
                of_key.append(Piece(part, np.arange(rows), 0))
                continue
            listed, counted = listed_rows(part.parquet, lists)
            for reason, n in counted.items():
                left_out[reason] += n
            of_key.append(Piece(part, listed, rows - len(listed)))
        first = next((piece.part for piece in of_key if piece.n), None)
        if first:
            # One stage writes all vectors of a partition, and they have one width.
            width = first.vectors("image").shape[1]
            models.setdefault((model.model_version, width), (key, model))
        pieces += of_key
        progress.advance()
    if not models:
        raise ReleaseError(f"there are no samples to release in {SUBSET} of {lake}")
    if len(models) > 1:
        found = (f"{model.title}, width {d} ({key})" for (_, d), (key, model) in models.items())
        raise ReleaseError(f"vectors of several models cannot be released: {'; '.join(found)}")
    (((_, dimension), (_, model)),) = models.items()
    return Plan(
        pieces,
        partitions,
        lists.digests,
        left_out,
        min(files, sum(piece.n for piece in pieces)),
        made_with,
        model,
        dimension,
        _common(heads),
    )


def _common(heads: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The heads that scored all partitions; the columns of others are left out."""
    same, others = in_all(heads)
    if others:
        logger.warning(
            f"the release has no scores of {', '.join(others)}: they are absent from some "
            "segments, or of several versions of the head; materialize scored_pairs and the subset "
            "again"
        )
    return same


def _parts(folder: Path, manifest: Manifest) -> Iterable[tuple[SubsetPart, int]]:
    """The parts of a partition and their numbers of rows."""
    rows = {file["name"]: int(file["rows"]) for file in manifest.files}
    for part in subset_parts(folder):
        name = part.parquet.name
        yield part, rows[name] if name in rows else part.rows()


def listed_rows(path: Path, lists: Lists) -> tuple[Rows, dict[str, int]]:
    """Rows of a parquet file of samples that a list names, and their number by reason.

    A row that both lists name counts for the first list.
    """
    counted: dict[str, int] = {}
    if not lists:  # nothing is read
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
