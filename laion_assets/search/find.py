"""Find results for a vector: nearest neighbours, filters, near-duplicates folded into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from laion_assets.knn.samples import Located, PartRow, Samples
from laion_assets.knn.subset import Modality
from laion_assets.search.clusters import Cluster, Clusters
from laion_assets.search.filters import Filters
from laion_assets.search.live_index import IndexVersion

_GROWTH: Final = 4
_SPARE: Final = 2
"""Neighbours to ask for per wanted result, where some may be left out."""


@dataclass
class Result:
    """A row with its cosine with the query; ``duplicates`` worse ones were folded into it."""

    row: int
    score: float
    located: Located
    duplicates: int = 0


@dataclass
class Found:
    """Results, best first, cut to the wanted number.

    They come from ``looked_at`` neighbours, of which ``gone`` are no longer in the subset.
    ``complete`` means that looking further would find no more. ``languages`` and ``crawls`` count
    the neighbours that are still in the subset.
    """

    results: list[Result]
    looked_at: int
    gone: int
    complete: bool
    languages: Counter[str] = field(default_factory=Counter)
    crawls: Counter[str] = field(default_factory=Counter)


def find(
    version: IndexVersion,
    samples: Samples,
    vector: npt.ArrayLike,
    over: Modality,
    wanted: int,
    filters: Filters,
    *,
    fold_above: float | None,
    max_candidates: int,
    clusters: Clusters | None = None,
) -> Found:
    """Find the ``wanted`` best samples that pass the filters.

    It looks at more and more neighbours until it has enough results, has seen ``max_candidates``,
    or has seen the whole index. Results of one of ``clusters``, or with a cosine above
    ``fold_above``, are folded into one; None as ``fold_above`` folds nothing. Raises ``ValueError``
    for a vector that the index cannot be searched for.
    """
    most = min(max_candidates, version.summary.n)
    lossy = filters.selective or fold_above is not None
    k = max(1, min(most, wanted * _SPARE if lossy else wanted))
    known: dict[int, Cluster] = {}
    while True:
        near = version.nearest(vector, k, over)
        found = _choose(version, samples, near, over, filters, fold_above)
        if fold_above is not None:
            of_each = _clusters_of(found.results, clusters, known) if clusters else None
            found.results = fold(found.results, over, fold_above, of_each)
        found.complete = k >= most or len(near) < k
        if found.complete or len(found.results) >= wanted:
            break
        k = min(most, k * _GROWTH)
    found.complete = found.complete and len(found.results) <= wanted
    found.results = found.results[:wanted]
    return found


def _choose(
    version: IndexVersion,
    samples: Samples,
    near: Sequence[tuple[float, int]],
    over: Modality,
    filters: Filters,
    fold_above: float | None,
) -> Found:
    found = Found([], len(near), 0, complete=False)
    present = 0

    def keep(number: int, row: PartRow) -> bool:
        nonlocal present
        present += 1
        found.crawls[row.value("crawl")] += 1
        found.languages[row.value("LANGUAGE") or ""] += 1
        return filters.take(row, near[number][0])

    places = version.places([row for _, row in near])
    located_all = samples.locate(places, () if fold_above is None else (over,), keep)
    found.gone = len(near) - present  # never another sample's caption in its place
    found.results = [
        Result(row, score, located)
        for (score, row), located in zip(near, located_all, strict=True)
        if located is not None
    ]
    return found


def _clusters_of(
    results: Sequence[Result], clusters: Clusters, known: dict[int, Cluster]
) -> list[Cluster]:
    """The cluster of each result; ``known``, by row, is what was looked up before, and grows."""
    new = [result for result in results if result.row not in known]
    found = clusters.of([result.located for result in new])
    known.update(zip((result.row for result in new), found, strict=True))
    return [known[result.row] for result in results]


def fold(
    results: Sequence[Result],
    over: Modality,
    above: float,
    clusters: Sequence[Cluster] | None = None,
) -> list[Result]:
    """Fold each result into the best earlier one whose vector or image it repeats.

    ``clusters``: the cluster of each result's image, as far as it is known; without, images are the
    same if their bytes are.

    clip-retrieval folds by connected components: a chain of small steps then swallows what is not
    alike, and the results change as more of them are looked at. This way does neither.
    """
    if not results:
        return []
    vectors = np.stack([result.located.vectors[over] for result in results])
    alike = vectors @ vectors.T > above
    kept = np.zeros(len(results), dtype=np.bool_)
    by_image: dict[str | int, int] = {}
    for i, result in enumerate(results):
        image = (clusters and clusters[i]) or result.located.value("sha256")
        image = image if over == "image" else None
        same = by_image.get(image) if image else None
        if same is None:
            repeated = np.flatnonzero(alike[i] & kept)
            same = int(repeated[0]) if len(repeated) else None
        if same is None:
            kept[i] = True
            same = i
        else:
            results[same].duplicates += 1
        if image:
            by_image.setdefault(image, same)
    return [result for result, keep in zip(results, kept, strict=True) if keep]
