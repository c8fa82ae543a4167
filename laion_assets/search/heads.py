"""Heads in search: which scores the page offers, results sorted by one, a query moved along one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from cachetools import LRUCache

from laion_assets.clip.identity import ModelIdentity
from laion_assets.heads.score import Scorer
from laion_assets.knn.samples import Samples
from laion_assets.schemas import SCORE_PREFIX, score_columns
from laion_assets.search.api_models import KnnRequest, SearchRequest
from laion_assets.search.encoder import Vector
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.find import Result
from laion_assets.search.live_index import IndexVersion

AESTHETIC: Final = "aesthetic"
"""Name of the head that clip-retrieval's `aesthetic_score` and `aesthetic_weight` are about."""
SORTED: Final = 200
"""Nearest results that are sorted by a head's score."""
_WEIGHT: Final = 0.5
"""Weight by default: that of clip-retrieval's client."""
_MIDDLE: Final = 4.5
"""The middle of clip-retrieval's aesthetic scores, which go from 0 to 9."""
_LOOKED_AT: Final = 8
"""Samples that are looked at for the columns of an index: its segments may differ in them."""


class SearchHeads:
    """The settings' heads, as queries use them."""

    def __init__(self, heads: Sequence[Scorer]) -> None:
        self._heads = {scorer.name: scorer for scorer in heads}
        self._columns: LRUCache[str, frozenset[str]] = LRUCache(4)

    def shown(self, version: IndexVersion, samples: Samples) -> list[dict[str, Any]]:
        """The heads whose scores an index's samples have, as the page needs them."""
        if version.name not in self._columns:
            rows = np.linspace(0, version.summary.n - 1, _LOOKED_AT).astype(int).tolist()
            located = samples.locate(version.places(sorted({*rows} - {-1})))
            self._columns[version.name] = frozenset(
                name for at in located if at is not None for name in score_columns(at.values)
            )
        present = self._columns[version.name]
        return [
            {
                "name": name,
                "low": scorer.head.low,
                "high": scorer.head.high,
                "keep": scorer.head.keep,
                "about": scorer.head.about,
            }
            for name, scorer in self._heads.items()
            if scorer.column in present
        ]

    def refuse_unknown(self, request: SearchRequest) -> None:
        """Raise :class:`RequestRefusedError` if a query names a head that the settings lack."""
        named = {*request.min_scores, *request.max_scores, request.order_by} - {None}
        if unknown := sorted(str(name) for name in named if name not in self._heads):
            raise RequestRefusedError(
                422,
                "no_head",
                f"there is no head {unknown[0]!r:.100}; this service has: "
                f"{', '.join(self._heads) or 'none'}",
            )

    def ordered(self, results: Sequence[Result], name: str | None) -> Sequence[Result]:
        """The results with the end of the head's range that people want first; without a head, as
        they are. A result without a score comes last, and equal ones stay in their order."""
        if name is None:
            return results
        sign = -1 if self._heads[name].head.keep == "high" else 1

        def place(result: Result) -> float:
            score = result.located.value(f"{SCORE_PREFIX}{name}")
            return math.inf if score is None else sign * score

        return sorted(results, key=place)

    def steered(self, vector: Vector, request: KnnRequest, model: ModelIdentity) -> Vector:
        """The query, moved along the aesthetic head's direction if it asks for that.

        clip-retrieval adds ``aesthetic_weight`` times an embedding of pictures that people rated
        ``aesthetic_score``. A linear head has a direction instead, along which its score grows
        fastest: 9 takes all of it, 0 its opposite, and those between the share in between.
        """
        direction = None if request.aesthetic_score is None else self._direction(model)
        norm = float(np.linalg.norm(vector))
        if direction is None or direction.shape != vector.shape or not 0 < norm < math.inf:
            return vector
        weight = _WEIGHT if request.aesthetic_weight is None else request.aesthetic_weight
        share = ((request.aesthetic_score or 0) - _MIDDLE) / _MIDDLE
        steered: Vector = vector / norm + np.float32(weight * share) * direction
        return steered

    def ignored(self, request: KnnRequest, model: ModelIdentity) -> list[str]:
        """Parameters that ask for something that this service does not have."""
        asked = request.aesthetic_score is not None and self._direction(model) is None
        return [*request.ignored, *(["aesthetic_score"] if asked else [])]

    def _direction(self, model: ModelIdentity) -> Vector | None:
        """The direction of the aesthetic head, if it is linear and of the index's model."""
        scorer = self._heads.get(AESTHETIC)
        if scorer is None or not scorer.head.identity.is_same(model):
            return None
        return scorer.direction()
