"""Vectors of unchanged samples are taken over from an earlier version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets.clip.earlier import DIGESTS
from laion_assets.clip.embed import (
    EmbeddedWith,
    OtherModelError,
    UnloadedModel,
    embed_shards,
)
from laion_assets.clip.model import ClipModel
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.vectors import PLACES
from laion_assets.tables import part_path, write_table
from tests.clip.conftest import MakeShard, row


@pytest.fixture
def before(make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path) -> Path:
    """Embeddings of twelve samples in two shards, one of which does not decode."""
    make_shard([row(n) for n in range(6)])
    make_shard([*(row(n) for n in range(6, 11)), row(11, image=b"broken")], number=1)
    embed_shards(tmp_path / "shards", tmp_path / "before", model, options)
    return tmp_path / "before"


def unloaded(model: ClipModel) -> UnloadedModel:
    def load() -> ClipModel:
        raise AssertionError("nothing is to be embedded")

    return UnloadedModel(EmbeddedWith.of(model), load)


def content(folder: Path) -> dict[str, tuple[object, ...]]:
    """Key -> the rest of the row, and what is row-aligned with it."""
    rows = pq.ParquetFile(part_path(folder, 0)).read().to_pylist()
    aligned = [np.load(place(folder, 0)) for place in PLACES] + [np.load(folder / DIGESTS)]
    return {
        row["key"]: (str(row), *(array[i].tobytes() for array in aligned))
        for i, row in enumerate(rows)
    }


def test_samples_that_stay_are_copied_without_a_model(
    before: Path, make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    make_shard([row(n) for n in range(6) if n != 2])
    make_shard([row(n) for n in range(6, 11)], number=1)
    out = tmp_path / "out"
    embedded = embed_shards(tmp_path / "shards", out, unloaded(model), options, earlier=before)
    assert (embedded.taken_over, embedded.samples, embedded.device) == (10, 0, "none")
    assert (embedded.counts.n_in, embedded.counts.kept) == (10, 10)
    expected = content(before)
    del expected["000000002"]
    assert content(out) == expected
    # Once more, from what has been taken over.
    embed_shards(tmp_path / "shards", tmp_path / "b", unloaded(model), options, earlier=out)
    assert content(tmp_path / "b") == expected


def test_only_what_is_new_or_other_is_embedded(
    before: Path, make_shard: MakeShard, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    # A text, then an image that is no longer the one that was embedded, and a new sample.
    rows = [
        row(0),
        row(1, caption="another text"),
        row(2, image=row(40)["image"]),
        *map(row, (3, 4)),
    ]
    make_shard([*rows, row(5), row(20)])
    out, whole = tmp_path / "out", tmp_path / "whole"
    lazy = UnloadedModel(EmbeddedWith.of(model), lambda: model)
    embedded = embed_shards(tmp_path / "shards", out, lazy, options, earlier=before)
    assert (embedded.taken_over, embedded.samples) == (9, 4), "with the one that does not decode"
    assert embedded.counts.rejects == {"undecodable": 1}
    embed_shards(tmp_path / "shards", whole, model, options)
    assert content(out).keys() == content(whole).keys()
    for place in PLACES:
        np.testing.assert_allclose(
            np.load(place(out, 0)), np.load(place(whole, 0)), atol=2e-3, rtol=0
        )
    assert (np.load(out / DIGESTS) == np.load(whole / DIGESTS)).all()


def test_a_version_without_digests_is_not_taken_over(
    before: Path, model: ClipModel, options: ClipOptions, tmp_path: Path
) -> None:
    (before / DIGESTS).unlink()
    embedded = embed_shards(tmp_path / "shards", tmp_path / "out", model, options, earlier=before)
    assert (embedded.taken_over, embedded.samples) == (0, 12)


def test_a_model_that_is_another_by_now_is_noticed(
    before: Path, model: ClipModel, options: ClipOptions, make_shard: MakeShard, tmp_path: Path
) -> None:
    make_shard([row(30)], number=2)
    known = EmbeddedWith.of(model).model_copy(update={"model_version": "0" * 16})
    with pytest.raises(OtherModelError, match="by now"):
        embed_shards(
            tmp_path / "shards",
            tmp_path / "out",
            UnloadedModel(known, lambda: model),
            options,
            earlier=before,
        )


@pytest.mark.parametrize("lost", [part_path, *PLACES])
def test_of_a_part_that_lacks_a_file_nothing_is_taken_over(
    lost: Callable[[Path, int], Path],
    before: Path,
    make_shard: MakeShard,
    model: ClipModel,
    options: ClipOptions,
    tmp_path: Path,
) -> None:
    """Two parts: of the whole one, whose rows come later, everything is."""
    parts = tmp_path / "parts"
    rows = pq.ParquetFile(part_path(before, 0)).read()
    for number, part in enumerate((slice(0, 6), slice(6, 11))):
        write_table(part_path(parts, number), rows[part])
        for place in PLACES:
            place(parts, number).parent.mkdir(exist_ok=True)
            np.save(place(parts, number), np.load(place(before, 0))[part])
    shutil.copy(before / DIGESTS, parts / DIGESTS)
    lost(parts, 0).unlink()
    out = tmp_path / "out"
    embedded = embed_shards(tmp_path / "shards", out, model, options, earlier=parts)
    assert (embedded.taken_over, embedded.counts.kept) == (5, 11)
    assert content(out) == content(before)
