"""Vectors of different precisions do not mix."""

from __future__ import annotations

from pathlib import Path

import pytest

from laion_assets.clip.embed import (
    EmbeddedWith,
    OtherEmbeddingsError,
    OtherModelError,
    UnloadedModel,
    embed_files,
    embed_shards,
)
from laion_assets.clip.model import ClipLoadError, ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from tests.clip.conftest import MakeShard, as_processor, row
from tests.clip.test_embed import digests


def test_bf16_is_not_mixed_with_other_precisions(
    make_shard: MakeShard,
    model: ClipModel,
    options: ClipOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = make_shard([row(0), row(1)]).parent
    asked = options.model_copy(update={"precision": "bf16"})
    as_processor(monkeypatch, tmp_path, "avx2")
    fallen_back = load_clip(asked)
    assert fallen_back.encode_texts(["a query"]).shape == (1, model.dim)
    as_processor(monkeypatch, tmp_path, "amx_bf16")
    bf16 = load_clip(asked)
    out, again, plain = tmp_path / "bf16", tmp_path / "again", tmp_path / "fp32"
    assert embed_shards(shards, out, bf16, asked).samples == 2
    before = digests(out)
    known = EmbeddedWith.recorded(EmbeddedWith.of(bf16).recorded_as(), "here")
    assert known.is_of(bf16)
    assert not known.is_of(model)
    for other in (fallen_back, UnloadedModel(known, lambda: fallen_back)):
        # What is there already needs no model.
        into = again if isinstance(other, UnloadedModel) else out
        with pytest.raises(ClipLoadError, match=r"amx_bf16, avx512_bf16\): .*set precision"):
            embed_shards(shards, into, other, asked)
    with pytest.raises(ClipLoadError, match="cannot embed"):
        embed_files(sorted(shards.glob("*.tar")), out, fallen_back, asked)
    with pytest.raises(OtherModelError):
        embed_shards(shards, again, UnloadedModel(known, lambda: model), asked)
    with pytest.raises(OtherEmbeddingsError):
        embed_files(sorted(shards.glob("*.tar")), out, model, options)
    assert digests(out) == before
    assert embed_shards(shards, out, bf16, asked).samples == 0
    assert embed_shards(shards, plain, model, options).samples == 2
    assert "computed_in" not in (plain / ".made_of.json").read_text()
    assert embed_shards(shards, plain, bf16, asked).samples == 2
