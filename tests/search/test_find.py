"""Filters, folding, and how far a search looks for results."""

from __future__ import annotations

import numpy as np
import pytest

from laion_assets.search.filters import Filters, LicenseTerms, allows
from laion_assets.search.find import find
from tests.search.conftest import Serving, SmallLake

BY = "https://creativecommons.org/licenses/by/4.0/"
BY_NC_ND = "https://creativecommons.org/licenses/by-nc-nd/2.0/de/"
CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
MARK = "https://creativecommons.org/publicdomain/mark/1.0/"


@pytest.mark.parametrize(
    ("terms", "good"),
    [
        ("any", {BY, BY_NC_ND, CC0, MARK, "?"}),
        ("creative_commons", {BY, BY_NC_ND, CC0, MARK}),
        ("public_domain", {CC0, MARK}),
        ("commercial_use", {BY, CC0, MARK}),
        ("adaptation", {BY, CC0, MARK}),
        ("unknown", {"?"}),
    ],
)
def test_licences_are_read_by_their_parts(terms: LicenseTerms, good: set[str]) -> None:
    assert {url for url in (BY, BY_NC_ND, CC0, MARK, "?") if allows(url, terms)} == good


@pytest.mark.parametrize(
    ("asked", "n"),
    [
        ({"safe": False}, 30),
        ({"safe": True}, 28),
        ({"safe": False, "nsfw": "NSFW"}, 1),
        ({"safe": True, "nsfw": "NSFW"}, 0),
        ({"license": "creative_commons"}, 2),
        ({"license": "commercial_use"}, 1),
        ({"language": "de"}, 1),
        ({"crawl": "CC-MAIN-2000-10"}, 10),
        ({"min_width": 410}, 10),
        ({"min_height": 301}, 0),
        ({"min_similarity": 0.999}, 0),
        ({"min_score": 0.9999}, 0),
        ({"min_score": -1, "min_similarity": -1, "min_height": 300}, 28),
    ],
)
def test_filters(served: Serving, asked: dict[str, object], n: int) -> None:
    found = served.search(text="a picture", limit=100, fold=False, **asked)
    assert len(found["results"]) == n
    assert found["exhaustive"]


def test_near_duplicates_are_folded_into_the_better_one(served: Serving) -> None:
    both = served.results(text="a red apple", limit=60, safe=False, fold=False)
    folded = served.results(text="a red apple", limit=60, safe=False)
    apples = [row for row in both if "red-apple" in row["url"]]
    assert len(apples) == 2
    kept = [row for row in folded if "red-apple" in row["url"]]
    assert [row["sample"] for row in kept] == [apples[0]["sample"]]
    assert kept[0]["duplicates"] == 1
    assert len(both) == len(folded) + sum(row["duplicates"] for row in folded)


def test_pages_follow_one_another(served: Serving) -> None:
    asked = {"text": "an animal", "over": "image", "safe": True}
    whole = served.captions(**asked, limit=20)
    first = served.search(**asked, limit=12)
    assert first["next_offset"] == 12
    assert served.captions(**asked, limit=12) == whole[:12]
    assert served.captions(**asked, limit=8, offset=12) == whole[12:]
    last = served.search(**asked, limit=100)
    assert last["next_offset"] is None


def test_looking_further_stops_at_the_bound(small_lake: SmallLake, served: Serving) -> None:
    version, samples = served.service.live.current, served.service.samples
    vector = small_lake.model.encode_texts(["a picture"])[0]
    rare = Filters(language="de")

    def ask(most: int) -> tuple[int, int, bool]:
        found = find(
            version, samples, vector, "image", 1, rare, fold_above=None, max_candidates=most
        )
        return len(found.results), found.looked_at, found.complete

    assert ask(1_000)[0] == 1
    assert ask(3) == (0, 3, True)


def test_words_with_a_minus_steer_away(served: Serving, small_lake: SmallLake) -> None:
    pizza = served.captions(text="food", limit=60, fold=False, safe=False)
    without = served.captions(text='food -"a slice of pizza"', limit=60, fold=False, safe=False)
    caption = next(text for text in pizza if "pizza" in text.lower())
    assert without.index(caption) > pizza.index(caption)


def test_an_image_and_words_are_combined(served: Serving) -> None:
    results = served.results(text="a slice of pizza", limit=1)
    like = results[0]["sample"]
    alone = served.captions(like=like, limit=60, safe=False)
    both = served.captions(like=like, text="a red apple", limit=60, safe=False)
    apple = next(caption for caption in both if "apple" in caption)
    assert both.index(apple) < alone.index(apple)
    assert served.captions(like=like, limit=1) == [results[0]["caption"]]


def test_more_like_this_searches_by_the_stored_vector(
    served: Serving, small_lake: SmallLake
) -> None:
    results = served.results(text="a slice of pizza", limit=1)
    again = served.results(like=results[0]["sample"], limit=1)
    np.testing.assert_allclose(again[0]["score"], 1, atol=1e-3)
