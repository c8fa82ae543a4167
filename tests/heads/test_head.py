"""Heads as files: what is refused, what their digest is of, and how they score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from laion_assets.clip.identity import ModelIdentity
from laion_assets.heads.head import HeadError, load_head
from laion_assets.heads.score import Scorer, as_column, refuse_other_model
from tests.heads.conftest import MakeHead


def changed(path: Path, **values: object) -> str:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(path)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"mood": "good"}, "mood: Extra inputs"),
        ({"keep": "middle"}, "keep: Input should be 'low' or 'high'"),
        ({"low": 2.0}, "low 2 is not below high 1"),
        ({"weights_sha256": "0" * 64}, "convert it again"),
    ],
)
def test_a_head_that_is_wrong_is_refused_by_name(
    make_head: MakeHead, values: dict[str, object], reason: str
) -> None:
    with pytest.raises(HeadError, match=reason):
        load_head(changed(make_head([1, 2]), **values))


def test_a_head_without_its_files_is_refused(make_head: MakeHead) -> None:
    with pytest.raises(HeadError, match=r"no head 'nowhere'.*shipped \(watermark-tiny\)"):
        load_head("nowhere")
    path = make_head([1, 2])
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(HeadError, match="has no weights beside it"):
        load_head(str(path))


@pytest.mark.parametrize("values", [{"dim": 3}, {"activations": ["none", "none"]}])
def test_weights_must_be_those_of_the_layers(
    make_head: MakeHead, values: dict[str, object]
) -> None:
    with pytest.raises(HeadError, match=r"layer \d has the shapes"):
        Scorer.load("own", changed(make_head([1, 2]), **values))


def test_the_digest_is_of_what_decides_a_score(make_head: MakeHead) -> None:
    path = make_head([1, 2])
    before = load_head(str(path)).digest
    assert load_head(changed(path, about="other words", high=5.0)).digest == before
    assert load_head(changed(path, model_version="w")).digest != before
    assert load_head(str(make_head([1, 3]))).digest != before


def test_a_head_of_another_model_is_refused(make_head: MakeHead) -> None:
    scorer = Scorer.load("own", str(make_head([1, 2])))
    refuse_other_model([scorer], ModelIdentity(model="moved", model_version="v"))
    other = ModelIdentity(model="ViT-B-32/openai", model_version="w")
    with pytest.raises(
        HeadError, match=r"head own .* is for .*\(version v\).* are of .*\(version w\)"
    ):
        refuse_other_model([scorer], other)


def test_a_score_is_of_the_direction_alone(first_dimension: Scorer) -> None:
    vectors = np.random.default_rng(3).normal(size=(5_000, 8)).astype(np.float16)
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(first_dimension.score(vectors), unit[:, 0], atol=1e-6)
    np.testing.assert_array_equal(first_dimension.direction(), np.eye(8, dtype=np.float32)[0])
    assert len(first_dimension.score(vectors[:0])) == 0
    with pytest.raises(HeadError, match="vectors of width 8, not of 4"):
        first_dimension.score(vectors[:, :4])


def test_a_score_that_is_no_number_is_null() -> None:
    scores = np.array([0.5, np.nan, np.inf, -1], np.float32)
    assert as_column(scores).to_pylist() == [0.5, None, None, -1]
