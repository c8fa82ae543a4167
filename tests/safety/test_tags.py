"""The rule over made-up embeddings: dimension i is category i."""

from __future__ import annotations

import numpy as np
import pytest

from laion_assets.safety.minors import load_words
from laion_assets.safety.prompts import Categories, Ranked, load_prompts
from laion_assets.safety.tags import tag

PROMPTS = load_prompts("laion400m")


def ranked(texts: list[str], flags: list[bool], first: int, dim: int) -> Ranked:
    vectors = np.zeros((len(texts), dim), dtype=np.float32)
    vectors[np.arange(len(texts)), first + np.arange(len(texts))] = 1
    return Ranked(tuple(texts), np.array(flags), vectors)


def categories() -> Categories:
    sets = [
        [(row.text, row.nsfw) for row in PROMPTS.categories],
        [(row.text, row.underage) for row in PROMPTS.underage],
        [(row.text, row.animal) for row in PROMPTS.animals],
    ]
    dim = sum(len(rows) for rows in sets)
    first = 0
    made = []
    for rows in sets:
        made.append(ranked([text for text, _ in rows], [flag for _, flag in rows], first, dim))
        first += len(rows)
    return Categories(*made, words=load_words())


AGES = len(PROMPTS.categories)
ANIMALS = AGES + len(PROMPTS.underage)
CATEGORIES = categories()


def image(*near: int, dim: int | None = None) -> np.ndarray:
    """Embedding nearest to the categories ``near``, in that order."""
    vector = np.zeros(dim or CATEGORIES.dim, dtype=np.float16)
    for place, category in enumerate(near):
        vector[category] = 0.9 - place / 10
    return vector[None]


SAFE, PORN = 3, 25


@pytest.mark.parametrize(
    ("near", "expected"),
    [
        ((SAFE, SAFE + 1, PORN), "UNLIKELY"),
        ((SAFE, PORN, PORN + 1), "UNSURE"),
        ((PORN, SAFE, PORN + 1), "UNSURE"),
        ((PORN, PORN + 1, SAFE), "NSFW"),
    ],
)
def test_the_tag_counts_nsfw_among_the_best_two(near: tuple[int, ...], expected: str) -> None:
    tags = tag(image(*near), CATEGORIES)
    assert tags.nsfw.tolist() == [expected]
    assert tags.nsfw_category_1.tolist() == [PROMPTS.categories[near[0]].text]
    assert tags.nsfw_category_2.tolist() == [PROMPTS.categories[near[1]].text]


def test_an_under_age_category_counts_first_or_second() -> None:
    child, adult = AGES + 1, AGES + 5
    rows = [(child, adult), (adult, child), (adult, adult + 1, child)]
    images = np.concatenate([image(*near) for near in rows])
    assert tag(images, CATEGORIES).underage_ranked.tolist() == [True, True, False]


def test_an_animal_category_counts_first_only() -> None:
    cat, house = ANIMALS + 22, ANIMALS + 5
    images = np.concatenate([image(cat, house), image(house, cat)])
    assert tag(images, CATEGORIES).animal_ranked.tolist() == [True, False]


def test_a_lost_comma_made_the_first_pornographic_prompt_safe() -> None:
    ours = [row.text for row in PROMPTS.categories]
    first_porn = [row.nsfw for row in PROMPTS.categories].index(True)
    at = ours.index("fashion, clothes")
    theirs = [*ours[: at - 1], ours[at - 1] + ours[at], *ours[at + 1 :]]
    assert len(theirs) == len(ours) - 1

    def their_tag(embedding: np.ndarray) -> str:
        """The original rule, by position in the list: all before the 19th counted as safe."""
        best = np.argsort(-embedding[0], kind="stable")[:2]
        unsafe = sum(int(place) >= 19 for place in best)
        return ("UNLIKELY", "UNSURE", "NSFW")[unsafe]

    in_theirs = theirs.index(ours[first_porn])
    assert their_tag(image(in_theirs, 2, dim=len(theirs))) == "UNLIKELY"
    assert their_tag(image(in_theirs, in_theirs + 1, dim=len(theirs))) == "UNSURE"

    assert tag(image(first_porn, 2), CATEGORIES).nsfw.tolist() == ["UNSURE"]
    assert tag(image(first_porn, first_porn + 1), CATEGORIES).nsfw.tolist() == ["NSFW"]


def test_the_length_of_an_embedding_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, CATEGORIES.dim)).astype(np.float32)
    unit = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    for one, other in zip(
        vars(tag(images, CATEGORIES)).values(), vars(tag(unit, CATEGORIES)).values(), strict=True
    ):
        assert one.tolist() == other.tolist()


def test_many_rows_are_tagged_as_each_alone() -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(size=(20_000, CATEGORIES.dim)).astype(np.float16)
    together = tag(images, CATEGORIES)
    assert set(together.nsfw.to_pylist()) == {"UNLIKELY", "UNSURE", "NSFW"}
    for row in (0, 16_383, 16_384, 19_999):
        alone = tag(images[row : row + 1], CATEGORIES)
        assert together.nsfw[row] == alone.nsfw[0]
        assert together.nsfw_category_2[row] == alone.nsfw_category_2[0]


def test_no_rows_give_no_tags() -> None:
    tags = tag(np.zeros((0, CATEGORIES.dim), dtype=np.float16), CATEGORIES)
    assert all(len(column) == 0 for column in vars(tags).values())


def test_embeddings_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="same model"):
        tag(np.zeros((3, 5), dtype=np.float16), CATEGORIES)
