from __future__ import annotations

import numpy as np

from laion_assets.filtering.plausible import tagged_share, tags_problem, threshold_problem
from laion_assets.filtering.similarities import PER_UNIT, Similarities

NEAREST = {f"category {number}": 100 - number for number in range(9)}


def test_an_implausible_share_of_tags_is_named_with_the_nearest_categories() -> None:
    tags = {"UNLIKELY": 47, "UNSURE": 50, "NSFW": 21}
    assert tagged_share(tags) == 71 / 118
    problem = tags_problem(tags, NEAREST, most=0.2)
    assert problem
    assert "60% of 118 pairs are tagged" in problem
    assert "category 0 (100), category 1 (99)" in problem
    assert "category 8" not in problem
    assert tags_problem(tags, NEAREST, most=0.7) is None


def test_plausible_shares_and_few_pairs_are_no_problem() -> None:
    assert tags_problem({"UNLIKELY": 80, "NSFW": 20}, NEAREST, most=0.2) is None
    assert tags_problem({"UNLIKELY": 1, "NSFW": 5}, NEAREST, most=0.2) is None
    assert tags_problem({}, {}, most=0.2) is None
    assert tagged_share({}) == 0


def test_a_threshold_that_lets_many_shuffled_pairs_through_is_one() -> None:
    found = Similarities()
    found.shuffled[PER_UNIT : PER_UNIT + 400] += 10  # evenly from 0 to 0.4
    assert threshold_problem(found, 0.37) is None
    problem = threshold_problem(found, 0.2)
    assert problem
    assert "0.2 lets 50% of shuffled pairs through" in problem
    few = Similarities(shuffled=np.minimum(found.shuffled, 1))
    assert threshold_problem(few, 0.2) is None
