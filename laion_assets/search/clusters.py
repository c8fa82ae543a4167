"""The clusters of near-duplicates that results are in, as the lake has them now."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from laion_assets.files import Identity, identity
from laion_assets.knn.samples import Located
from laion_assets.lake import LocalLake
from laion_assets.layout import NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.segment import BY_SAMPLE

Cluster = int | None

_FILES: Final = 8_192
"""Files that stay mapped into memory; Linux allows a process 65,530 maps."""


class Clusters:
    """Look-ups in the small sorted files of a lake's near-duplicates; without a lake, none.

    A file is opened again once it was replaced. Several threads may share it.
    """

    def __init__(self, lake: LocalLake | None) -> None:
        self._lake = lake
        self._mapped: LRUCache[Path, tuple[Identity, NDArray[Any]]] = LRUCache(_FILES)
        self._lock = threading.Lock()

    def of(self, found: Sequence[Located]) -> list[Cluster]:
        """The cluster of each sample; None where nothing is known of it."""
        clusters: list[Cluster] = [None] * len(found)
        by_segment: dict[tuple[str, str], list[int]] = {}
        for number, located in enumerate(found if self._lake else ()):
            key = located.value("crawl") or "", located.value("segment") or ""
            by_segment.setdefault(key, []).append(number)
        for (crawl, segment), numbers in by_segment.items():
            ids = np.array([found[number].value("SAMPLE_ID") for number in numbers], np.int64)
            for number, cluster in zip(numbers, self._in(crawl, segment, ids), strict=True):
                clusters[number] = cluster
        return clusters

    def _in(self, crawl: str, segment: str, ids: NDArray[np.int64]) -> list[Cluster]:
        assert self._lake
        try:
            held = self._held(self._lake.folder(NEAR_DUPLICATES, SegmentKey(crawl, segment)))
        except (ValueError, FileNotFoundError):  # no segment of a lake, or it has none
            return [None] * len(ids)
        place = np.minimum(np.searchsorted(held["sample"], ids), max(0, len(held) - 1))
        if not len(held):
            return [None] * len(ids)
        same = held["sample"][place] == ids
        clusters = held["cluster"][place].tolist()
        return [of if known else None for of, known in zip(clusters, same.tolist(), strict=True)]

    def _held(self, folder: Path) -> NDArray[Any]:
        path = folder / BY_SAMPLE
        seen = identity(path)
        with self._lock:
            kept = self._mapped.get(path)
        if kept is None or kept[0] != seen:
            kept = seen, np.load(path, mmap_mode="r", allow_pickle=False)
            with self._lock:
                self._mapped[path] = kept
        return kept[1]
