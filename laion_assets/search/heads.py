"""Heads in search: which scores the page offers, results sorted by one, a query moved along one."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cachetools import TTLCache

from laion_assets.clip.identity import ModelIdentity
from laion_assets.heads.score import Scorer
from laion_assets.knn.subset import SubsetError, Subsets, heads_of, subset_folder
from laion_assets.schemas import SCORE_PREFIX
from laion_assets.search.api_models import KnnRequest, SearchRequest
from laion_assets.search.encoder import Vector
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.find import Result
from laion_assets.search.live_index import IndexVersion

logger = logging.getLogger(__name__)

AESTHETIC: Final = "aesthetic"
"""Name of the head that clip-retrieval's `aesthetic_score` and `aesthetic_weight` are about."""
SORTED: Final = 200
"""Nearest results that are sorted by a head's score."""
_WEIGHT: Final = 0.5
"""Weight by default: that of clip-retrieval's client."""
_MIDDLE: Final = 4.5
"""The middle of clip-retrieval's aesthetic scores, which go from 0 to 9."""
_SURVEY_KEPT_S: Final = 600
"""A subset may be scored again without a new index: its segments are then looked at again."""


@dataclass(frozen=True)
class Survey:
    """By which heads the subsets of an index's segments are scored."""

    scored: frozenset[str]
    """Names of the heads that scored at least one."""
    problems: tuple[str, ...]
    """What to know of heads of which several versions scored them."""


class SearchHeads:
    """The settings' heads, as queries use them."""

    def __init__(self, heads: Sequence[Scorer], subsets: Subsets) -> None:
        self._heads = {scorer.name: scorer for scorer in heads}
        self._subsets = subsets
        self._surveys: TTLCache[str, Survey] = TTLCache(4, _SURVEY_KEPT_S)
        self._warned: tuple[str, ...] = ()
        self._lock = threading.Lock()

    @property
    def digests(self) -> Mapping[str, str]:
        """Name -> digest of each head."""
        return {name: scorer.head.digest for name, scorer in self._heads.items()}

    def survey(self, version: IndexVersion) -> Survey:
        """Look by which heads each segment of an index is scored, unless it is known.

        It reads a manifest for each segment. A segment whose manifest cannot be read counts as not
        scored.
        """
        with self._lock:
            known = self._surveys.get(version.name)
        if known is not None:
            return known
        scored, others, own = Counter[str](), Counter[str](), self.digests
        segments = {(at.crawl, at.segment) for run in version.summary.runs for at in run.segments}
        for crawl, segment in segments if own else ():
            try:
                found = heads_of(subset_folder(self._subsets, crawl, segment))
            except (SubsetError, FileNotFoundError):
                continue
            for name in own.keys() & found.keys():
                (scored if found[name] == own[name] else others)[name] += 1
        problems = tuple(
            f"{n:,} of {len(segments):,} segments were scored by another version of the head "
            f"{name}, and their scores are left out: materialize scored_pairs and the subset again"
            for name, n in sorted(others.items())
        )
        made = Survey(frozenset(scored), problems)
        with self._lock:
            self._surveys[version.name] = made
            new, self._warned = problems != self._warned, problems
        for problem in problems if new else ():
            logger.warning(problem)
        return made

    def problems(self, version: IndexVersion) -> Sequence[str]:
        """What the last survey of an index found; nothing is read."""
        with self._lock:
            known = self._surveys.get(version.name)
        return known.problems if known else ()

    def shown(self, version: IndexVersion) -> list[dict[str, Any]]:
        """The heads that scored any of an index's segments, as the page needs them."""
        present = self.survey(version).scored
        return [
            {
                "name": name,
                "low": scorer.head.low,
                "high": scorer.head.high,
                "keep": scorer.head.keep,
                "about": scorer.head.about,
            }
            for name, scorer in self._heads.items()
            if name in present
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
        step = np.float32(weight * ((request.aesthetic_score or 0) - _MIDDLE) / _MIDDLE)
        steered: Vector = vector / norm + step * direction
        return steered if step else vector

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
