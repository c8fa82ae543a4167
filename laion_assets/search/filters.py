"""Filters: what results must fulfil besides being near the query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from laion_assets.knn.samples import PartRow
from laion_assets.schemas import SCORE_PREFIX

LicenseTerms = Literal[
    "any", "creative_commons", "public_domain", "commercial_use", "adaptation", "unknown"
]
NsfwTag = Literal["any", "UNLIKELY", "UNSURE", "NSFW"]
SAFE_TAG: Final = "UNLIKELY"


@dataclass(frozen=True)
class Filters:
    """Conditions on a sample, all of which must hold; ``safe`` takes only the tag UNLIKELY."""

    safe: bool = False
    min_score: float | None = None
    min_similarity: float | None = None
    min_width: int | None = None
    min_height: int | None = None
    min_scores: Mapping[str, float] = field(default_factory=dict)
    max_scores: Mapping[str, float] = field(default_factory=dict)
    """Bounds by head; a sample without a score passes none."""
    license: LicenseTerms = "any"
    nsfw: NsfwTag = "any"
    language: str | None = None
    crawl: str | None = None

    @property
    def selective(self) -> bool:
        """Whether the filters may leave anything out."""
        return self != Filters()

    def take(self, row: PartRow, score: float) -> bool:
        """Whether a sample with this ``score`` passes."""
        value = row.value
        return (
            not (self.safe and value("NSFW") != SAFE_TAG)
            and (self.nsfw == "any" or value("NSFW") == self.nsfw)
            and (self.min_score is None or score >= self.min_score)
            and _at_least(value("similarity"), self.min_similarity)
            and _at_least(value("WIDTH"), self.min_width)
            and _at_least(value("HEIGHT"), self.min_height)
            and all(_at_least(_score(row, h), _stored(low)) for h, low in self.min_scores.items())
            and all(_at_most(_score(row, h), _stored(high)) for h, high in self.max_scores.items())
            and (self.license == "any" or allows(value("LICENSE"), self.license))
            and (self.language is None or value("LANGUAGE") == self.language)
            and (self.crawl is None or value("crawl") == self.crawl)
        )


def _at_least(value: Any, bound: float | None) -> bool:
    return bound is None or (value is not None and value >= bound)


def _at_most(value: Any, bound: float) -> bool:
    return value is not None and value <= bound


def _stored(bound: float) -> float:
    """A bound as scores are stored, so that a score of 0.7 is at least 0.7."""
    with np.errstate(over="ignore"):
        return float(np.float32(bound))


def _score(row: PartRow, head: str) -> Any:
    return row.value(f"{SCORE_PREFIX}{head}")


def allows(license_url: str | None, terms: LicenseTerms) -> bool:
    """Whether a licence as the pairs hold it (a Creative Commons URL, or "?") is of this kind.

    The parts of its name decide (creativecommons.org/share-your-work/cclicenses): `nc` forbids
    commercial use, `nd` forbids adaptations; CC0 and the public domain mark forbid nothing.
    """
    if terms == "any":
        return True
    _, found, path = (license_url or "?").partition("creativecommons.org/")
    if terms == "unknown" or not found:
        return terms == "unknown" and not found
    kind, _, rest = path.partition("/")
    parts = rest.partition("/")[0].split("-")
    public = kind == "publicdomain"
    return {
        "creative_commons": True,
        "public_domain": public,
        "commercial_use": public or "nc" not in parts,
        "adaptation": public or "nd" not in parts,
    }[terms]
