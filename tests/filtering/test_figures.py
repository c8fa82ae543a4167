from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from laion_assets.filtering.figures import (
    kept_by_tag,
    score_sheets,
    similarity_histogram,
    tags_and_categories,
    threshold_sheets,
)
from laion_assets.filtering.plausible import counted
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.score import score_segment
from laion_assets.filtering.similarities import Similarities
from laion_assets.filtering.subset import take_subset
from laion_assets.heads.score import Scorer
from laion_assets.safety.prompts import Categories
from tests.filtering.conftest import (
    DIM,
    NAKED,
    THING,
    UNSURE,
    MakeEmbeddings,
    sample,
    write_shard,
)
from tests.heads.conftest import write_linear


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def test_the_histogram_shows_the_similarities_and_the_threshold(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings([sample(n, n / 100) for n in range(60)], [])
    score_segment(embeddings, tmp_path / "scored", categories)
    found = Similarities.read([tmp_path / "scored"])
    at_30 = similarity_histogram(found, [0.3])
    assert at_30 == similarity_histogram(found, [0.3])
    at_50 = similarity_histogram(found, [0.5])

    def line(png: bytes) -> float:
        image = pixels(png)
        red = (image[:, :, 0] > 150) & (image[:, :, 1] < 100) & (image[:, :, 2] < 80)
        return float(np.median(np.nonzero(red)[1]))

    assert line(at_30) < line(at_50)


def test_no_pairs_make_an_empty_histogram() -> None:
    assert pixels(similarity_histogram(Similarities(), [0.3])).size


# Far apart, so that they are recognised after JPEG compression.
KEPT, DROPPED, FAR, UNSAFE = (0, 140, 0), (0, 0, 200), (160, 160, 0), (220, 0, 220)


def tiles(sheet: bytes) -> list[tuple[int, ...]]:
    """Colours of the first row's pictures: each is 40 pixels wide, in a tile of 158."""
    image = Image.open(io.BytesIO(sheet))
    assert image.format == "JPEG"
    assert len(sheet) <= 150_000
    found = []
    for left in range(8, image.width - 150, 158):
        colour = image.getpixel((left + 75, 8 + 75))
        assert isinstance(colour, tuple)
        found.append(tuple(min((0, 140, 160, 200, 220), key=lambda v: abs(v - c)) for c in colour))
    return [colour for colour in found if colour != (220, 220, 220)]


def test_sheets_show_what_is_just_kept_and_just_dropped_and_nothing_unsafe(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    rows = [sample(n, 0.50 + n / 1000) for n in range(20)]
    rows += [sample(20, 0.31), sample(21, 0.29), sample(22, 0.05)]
    rows += [sample(23, 0.31, UNSURE), sample(24, 0.29, NAKED), sample(25, 0.6, NAKED, text="kid")]
    colours = [FAR] * 20 + [KEPT, DROPPED, FAR, UNSAFE, UNSAFE, UNSAFE]
    scored, shards = tmp_path / "scored", tmp_path / "shards"
    score_segment(make_embeddings(rows), scored, categories)
    write_shard(shards, rows, colours)
    kept, dropped = threshold_sheets(scored, shards, Recipe(), 0.3)
    assert tiles(kept) == [KEPT, *[FAR] * 5]
    assert tiles(dropped) == [DROPPED, FAR]

    # Rebuilt shards have other pictures under these keys; later the shards may be gone.
    moved = [row | {"url": "https://a.test/other.jpg"} for row in rows]
    write_shard(tmp_path / "rebuilt", moved, colours)
    for folder in (tmp_path / "rebuilt", tmp_path / "gone"):
        assert [tiles(sheet) for sheet in threshold_sheets(scored, folder, Recipe(), 0.3)] == [
            [],
            [],
        ]


def test_a_heads_sheet_has_the_lowest_scores_and_the_highest_and_nothing_unsafe(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    # The score is the second dimension, which grows with the row.
    rows = [sample(n, 0.5, {0: 0.9, 1: 0.01 * n, THING: 0.5}) for n in range(20)]
    rows.append(sample(20, 0.5, NAKED | {1: 0.9}))
    colours = [KEPT] * 6 + [FAR] * 8 + [DROPPED] * 6 + [UNSAFE]
    scored, shards = tmp_path / "scored", tmp_path / "shards"
    head = Scorer.load("second", str(write_linear(tmp_path / "second.json", np.eye(DIM)[1])))
    score_segment(make_embeddings(rows), scored, categories, [head])
    write_shard(shards, rows, colours)
    (drawn,) = score_sheets(scored, shards, ["score_second"]).values()
    assert tiles(drawn) == [KEPT] * 6  # the first line of two
    assert score_sheets(scored, shards, []) == {}


def test_tables_count_tags_and_categories(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings(
        [sample(0), sample(1, 0.1), sample(2, near=NAKED)], [sample(3), sample(4, near=UNSURE)]
    )
    scored, subset = tmp_path / "scored", tmp_path / "subset"
    score_segment(embeddings, scored, categories)
    take_subset(scored, embeddings, subset, Recipe(), threshold=0.3)
    of_all = counted(scored, "nsfw"), counted(scored, "nsfw_category_1")
    tags, nearest = tags_and_categories(*of_all)
    assert [tuple(row.values()) for row in tags] == [("UNLIKELY", 3), ("UNSURE", 1), ("NSFW", 1)]
    assert [tuple(row.values()) for row in nearest] == [("category 0", 3), ("category 2", 2)]
    assert [tuple(row.values()) for row in kept_by_tag(scored, subset)] == [
        ("UNLIKELY", 3, 2),
        ("UNSURE", 1, 1),
        ("NSFW", 1, 1),
    ]
