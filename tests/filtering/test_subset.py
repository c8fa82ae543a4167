from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.clip import vectors as clip_vectors
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.filtering import score
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.score import score_segment
from laion_assets.filtering.similarities import cosines
from laion_assets.filtering.subset import take_subset
from laion_assets.funnel import StageCounts
from laion_assets.safety.prompts import Categories
from laion_assets.schemas import SUBSET
from laion_assets.tables import part_path
from tests.filtering.conftest import (
    ANIMAL,
    CHILD,
    DIM,
    NAKED,
    PLAIN,
    UNSURE,
    MakeEmbeddings,
    sample,
)


class Folders:
    """Embeddings scored once, and subsets of them."""

    def __init__(self, embeddings: Path, categories: Categories, root: Path) -> None:
        self.embeddings, self.scored, self.root = embeddings, root / "scored", root
        score_segment(embeddings, self.scored, categories)

    def take(
        self, recipe: Recipe | None = None, threshold: float = 0.3, name: str = "subset"
    ) -> StageCounts:
        return take_subset(
            self.scored,
            self.embeddings,
            self.root / name,
            recipe or Recipe(),
            threshold=threshold,
        )

    def subset(self, number: int = 0, name: str = "subset") -> pa.Table:
        return pq.ParquetFile(part_path(self.root / name, number)).read()


@pytest.fixture
def mixed(make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path) -> Folders:
    rows = [
        sample(0, 0.5),
        sample(1, 0.1),
        sample(2, 0.5, UNSURE, text="Kid at the beach"),
        sample(3, 0.5, NAKED | {CHILD: 0.85}),
        sample(4, 0.5, UNSURE | {ANIMAL: 0.85, CHILD: -0.9}),
        sample(5, 0.5, UNSURE),
        sample(6, 0.5, NAKED, text="an adult"),
        sample(7, 0.5, PLAIN | {ANIMAL: 0.85}, text="a kid with a dog"),
        # It fails every rule and counts for the first one only.
        sample(8, 0.1, NAKED | {CHILD: 0.85, ANIMAL: 0.85}, text="kid"),
    ]
    return Folders(make_embeddings(rows), categories, tmp_path)


def test_each_row_is_refused_for_its_first_reason(mixed: Folders) -> None:
    counts = mixed.take()
    assert counts.rejects == {
        "below_threshold": 2,
        "unsafe_minor_text": 1,
        "unsafe_underage": 1,
        "unsafe_animal": 1,
    }
    assert (counts.n_in, counts.kept) == (9, 4)
    assert counts.adds_up
    assert counts.examples["unsafe_minor_text"] == ["https://a.test/2.jpg"]
    table = mixed.subset()
    assert [int(key) for key in table["key"].to_pylist()] == [0, 5, 6, 7]
    assert table["NSFW"].to_pylist() == ["UNLIKELY", "UNSURE", "NSFW", "UNLIKELY"]


def test_rules_can_be_switched_off(mixed: Folders) -> None:
    recipe = Recipe(drop_minor_text=False, drop_underage=False, drop_animal=False)
    assert mixed.take(recipe).rejects == {"below_threshold": 2}


def test_a_condition_comes_last(mixed: Folders) -> None:
    counts = mixed.take(Recipe(where="nsfw = 'UNLIKELY'"))
    assert counts.rejects["predicate"] == 2
    assert counts.rejects["below_threshold"] == 2
    assert mixed.subset()["NSFW"].to_pylist() == ["UNLIKELY"] * 2


def test_recipes_stand_side_by_side_over_the_same_scores(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings([sample(n, 0.25 + n / 100) for n in range(10)])
    folders = Folders(embeddings, categories, tmp_path)
    kept = {
        name: folders.take(Recipe(name=name), threshold, name).kept
        for name, threshold in (("laion400m", 0.30), ("laion5b-en", 0.28))
    }
    assert kept["laion400m"] < kept["laion5b-en"] < 10
    for name, threshold in (("laion400m", 0.30), ("laion5b-en", 0.28)):
        assert folders.subset(name=name)["similarity"].to_numpy().min() >= threshold


def test_a_similarity_at_the_threshold_is_kept(mixed: Folders) -> None:
    scored = pq.ParquetFile(part_path(mixed.scored, 0)).read()
    exactly = scored["similarity"].to_numpy()[0]
    mixed.take(threshold=float(exactly), name="at")
    assert "000000000" in mixed.subset(name="at")["key"].to_pylist()
    mixed.take(threshold=float(np.nextafter(exactly, 1)), name="above")
    assert "000000000" not in mixed.subset(name="above")["key"].to_pylist()


def test_the_schema_is_the_releases_first_and_exact(mixed: Folders) -> None:
    mixed.take()
    schema = mixed.subset().schema
    assert schema.equals(SUBSET)
    assert schema.names[:8] == [
        "SAMPLE_ID",
        "URL",
        "TEXT",
        "HEIGHT",
        "WIDTH",
        "LICENSE",
        "NSFW",
        "similarity",
    ]
    assert str(schema.field("SAMPLE_ID").type) == "int64"
    assert str(schema.field("HEIGHT").type) == "int32"
    assert str(schema.field("similarity").type) == "double"
    column = pq.read_metadata(part_path(mixed.root / "subset", 0)).row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_width_and_height_were_swapped_in_the_release(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    wide = sample(0, width=1920, height=1080)
    theirs = {"WIDTH": wide["height"], "HEIGHT": wide["width"]}
    assert theirs["WIDTH"] < theirs["HEIGHT"]

    folders = Folders(make_embeddings([wide]), categories, tmp_path)
    folders.take()
    (ours,) = folders.subset().to_pylist()
    assert (ours["WIDTH"], ours["HEIGHT"]) == (1920, 1080)


def test_a_text_with_a_bar_shifts_no_columns(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    text = 'cats | dogs "2021"|6016\n'
    row = sample(0, 0.5, text=text)
    line = "|".join(map(str, [row["url"], row["text"], row["height"], 0.5]))
    fields = line.splitlines()[0].split("|")
    assert fields[3] == "6016"

    folders = Folders(make_embeddings([row]), categories, tmp_path)
    folders.take()
    (ours,) = folders.subset().to_pylist()
    assert ours["TEXT"] == text
    assert ours["similarity"] == pytest.approx(0.5, abs=2e-3)


def test_a_subset_fills_parts_of_its_own_with_its_vectors_beside_them(
    make_embeddings: MakeEmbeddings,
    categories: Categories,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(5)
    rows = [sample(n, float(rng.uniform(0, 0.6))) for n in range(80)]
    folders = Folders(make_embeddings(rows[:50], rows[50:]), categories, tmp_path)
    monkeypatch.setattr(clip_vectors, "ROWS_PER_PART", 16)
    monkeypatch.setattr(score, "ROW_GROUP", 12)
    counts = folders.take()
    out = tmp_path / "subset"
    sizes = [16] * (counts.kept // 16) + [counts.kept % 16]
    assert 2 < len(sizes) < 5
    kept = []
    for number, size in enumerate(sizes):
        images, texts = np.load(image_path(out, number)), np.load(text_path(out, number))
        table = folders.subset(number)
        assert len(images) == len(texts) == len(table) == size
        assert images.dtype == texts.dtype == np.float16
        np.testing.assert_array_equal(cosines(images, texts), table["similarity"].to_numpy())
        keys = [int(key) for key in table["key"].to_pylist()]
        expected = np.array([rows[key]["image"] for key in keys])
        np.testing.assert_array_equal(images, expected.astype(np.float16))
        kept += keys
    assert kept == sorted(kept)
    assert np.load(image_path(out, 0), mmap_mode="r").flags.c_contiguous

    # A stricter choice leaves no part or vectors of the former.
    assert folders.take(threshold=0.55).kept < 16
    assert list(digests(out)) == [
        *("_img_emb/img_emb_00000.npy", "_text_emb/text_emb_00000.npy", "part-00000.parquet")
    ]


def test_a_subset_without_rows_is_one_part_without_rows(mixed: Folders) -> None:
    assert mixed.take(threshold=0.9).kept == 0
    assert mixed.subset().schema.equals(SUBSET)
    assert len(mixed.subset()) == 0
    for place in (image_path, text_path):
        assert np.load(place(mixed.root / "subset", 0)).shape == (0, DIM)


def test_embedding_reader_reads_the_vectors_in_place(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    from embedding_reader import EmbeddingReader

    few = [[sample(n + 10 * part, 0.5) for n in range(4)] for part in range(5)]
    few[0] = [sample(0, 0.1)]
    few[2] = []
    folders = Folders(make_embeddings(*few), categories, tmp_path)
    assert folders.take().kept == 12
    out = tmp_path / "subset"
    reader = EmbeddingReader(embeddings_folder=str(out / "_img_emb"), file_format="npy")
    assert (reader.count, reader.dimension) == (12, DIM)
    found = [
        vector
        for vectors, _ in reader(batch_size=3, show_progress=False)
        for vector in np.asarray(vectors)
    ]
    expected = [row["image"] for rows in few[1:] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_sample_ids_are_unique_and_stable(mixed: Folders) -> None:
    mixed.take(name="one")
    mixed.take(name="two")
    ids = mixed.subset(name="one")["SAMPLE_ID"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert ids == mixed.subset(name="two")["SAMPLE_ID"].to_pylist()


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_choice_gives_the_same_bytes_whatever_was_there(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings([sample(n, 0.4) for n in range(5)], [sample(9, 0.1)])
    folders = Folders(embeddings, categories, tmp_path)
    fresh = folders.take()
    before = digests(tmp_path / "subset")
    assert len(before) == 3

    # The state after a kill, and what a call that kept more has left.
    image_path(tmp_path / "subset", 0).write_bytes(b"stale")
    for path in (part_path, image_path, text_path):
        path(tmp_path / "subset", 1).write_bytes(b"stale")
    assert folders.take() == fresh
    assert digests(tmp_path / "subset") == before
