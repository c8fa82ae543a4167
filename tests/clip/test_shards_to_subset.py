"""A shard becomes a subset in plain folders, with one model throughout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets.clip.embed import embed_files, embed_shards
from laion_assets.clip.model import ClipModel
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.thresholds import UnknownThresholdError
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.subset import OtherModelError, filter_embeddings
from laion_assets.safety.options import SafetyOptions
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.schemas import SCORED, SUBSET
from tests.clip.conftest import MakeShard, row


def test_category_embeddings_are_the_models_own(model: ClipModel) -> None:
    prompts = load_prompts("laion400m")
    categories = category_embeddings(prompts, model)
    assert categories.dim == model.dim
    assert len(categories.nsfw.vectors) == len(categories.nsfw.flags) == len(prompts.categories)
    last = prompts.animals[-1]
    np.testing.assert_allclose(
        categories.animals.vectors[-1], model.encode_texts([last.text])[0], atol=1e-5
    )
    assert categories.animals.flags[-1]


def test_a_folder_of_embeddings_is_scored_and_filtered(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(n) for n in range(12)])
    embeddings, out = tmp_path / "embeddings", tmp_path / "out"
    embed_shards(tmp_path / "shards", embeddings, model, options)

    recipe, scores = Recipe(threshold=-1, drop_animal=False), tmp_path / "scores"
    everything = filter_embeddings(embeddings, out, model, SafetyOptions(), recipe, scores)
    assert everything.n_in == 12
    scored = pq.ParquetFile(scores / "part-00000.parquet").read()
    assert scored.schema.equals(SCORED)
    images = np.load(image_path(embeddings, 0)).astype(np.float32)
    texts = np.load(text_path(embeddings, 0)).astype(np.float32)
    similarity = scored["similarity"].to_numpy()
    np.testing.assert_allclose((images * texts).sum(axis=1), similarity, atol=2e-3)

    middle = float(np.sort(similarity)[6])
    half = filter_embeddings(embeddings, out, model, SafetyOptions(), Recipe(threshold=middle))
    assert half.rejects["below_threshold"] == 6
    subset = pq.ParquetFile(out / "part-00000.parquet").read()
    assert subset.schema.equals(SUBSET)
    assert len(subset) == half.kept == len(np.load(image_path(out, 0)))
    assert sorted(path.name for path in out.iterdir()) == [
        *(".taken_with.json", "_img_emb", "_text_emb", "part-00000.parquet")
    ]


def test_embeddings_of_another_model_are_refused(
    make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    tar = make_shard([row(n) for n in range(3)])
    embeddings, out, recipe = tmp_path / "embeddings", tmp_path / "out", Recipe(threshold=-1)
    embed_files([tar], embeddings, model, options)
    assert filter_embeddings(embeddings, out, model, SafetyOptions(), recipe).n_in == 3
    note = embeddings / ".made_of.json"
    note.write_text(note.read_text().replace(model.version, "another"))
    with pytest.raises(OtherModelError, match=r"embedded by .* \(version another\)"):
        filter_embeddings(embeddings, out, model, SafetyOptions(), recipe)


def test_a_model_without_a_threshold_is_refused_before_any_work(
    model: ClipModel, tmp_path: Path
) -> None:
    with pytest.raises(UnknownThresholdError, match="local-dir"):
        filter_embeddings(tmp_path / "nothing", tmp_path, model, SafetyOptions(), Recipe())
