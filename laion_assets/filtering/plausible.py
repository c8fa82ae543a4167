"""Whether tags and threshold suit the model: advice, which stands in nobody's way.

Prompts and thresholds belong to the model that they were chosen for. Under another one they drop
good pairs, or keep bad ones, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pyarrow.compute as pc

from laion_assets.filtering.similarities import FEWEST, Similarities
from laion_assets.tables import PARTS, ROW_GROUP, batches

MOST_LET_THROUGH: Final = 0.1
"""Largest plausible share of shuffled pairs at or above a threshold."""
_FEWEST_TAGGED: Final = 30
"""Number of pairs below which a share of tags says little."""
_NAMED: Final = 5
"""Number of categories that a message names."""

GUIDE: Final = "see docs/own-model.md"


def counted(folder: Path, column: str) -> dict[str, int]:
    """How often each value of a column comes in a folder's parts, most frequent first."""
    counts: dict[str, int] = {}
    for part in sorted(folder.glob(PARTS)):
        for batch in batches(part, [column], ROW_GROUP):
            for value in pc.value_counts(batch[column]).to_pylist():
                counts[value["values"]] = counts.get(value["values"], 0) + value["counts"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def tagged_share(tags: Mapping[str, int]) -> float:
    """Share of pairs that are not tagged UNLIKELY, by the counts of their tags."""
    n = sum(tags.values())
    return (n - tags.get("UNLIKELY", 0)) / n if n else 0.0


def tags_problem(tags: Mapping[str, int], nearest: Mapping[str, int], most: float) -> str | None:
    """Why the prompts may not suit the model; None if the share of tagged pairs is plausible.

    Args:
        tags: number of pairs by safety tag.
        nearest: number of pairs by the category nearest to the image, most frequent first.
        most: the largest plausible share of pairs that are not tagged UNLIKELY.
    """
    n, share = sum(tags.values()), tagged_share(tags)
    if n < _FEWEST_TAGGED or share <= most:
        return None
    named = ", ".join(f"{name} ({number:,})" for name, number in list(nearest.items())[:_NAMED])
    return (
        f"{share:.0%} of {n:,} pairs are tagged NSFW or UNSURE, more than the plausible {most:.0%}:"
        f" the prompts may not suit the model. Nearest categories: {named}; {GUIDE}"
    )


def threshold_problem(found: Similarities, threshold: float) -> str | None:
    """Why a threshold may not suit the model; None if it lets plausibly few mismatches through."""
    share = found.at(threshold).shuffled
    if found.shuffled.sum() < FEWEST or share <= MOST_LET_THROUGH:
        return None
    return (
        f"the threshold {threshold:g} lets {share:.0%} of shuffled pairs through, more than the "
        f"plausible {MOST_LET_THROUGH:.0%}: `laion-assets calibrate` proposes one; {GUIDE}"
    )
