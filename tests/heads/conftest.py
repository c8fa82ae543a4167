"""Heads with chosen weights, written as the converter writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from laion_assets.clip.identity import ModelIdentity
from laion_assets.heads.convert import Description, Linear, write_head
from laion_assets.heads.score import Scorer

MODEL = ModelIdentity(model="ViT-B-32/openai", model_version="v")
MakeHead = Callable[..., Path]


def described(name: str = "plain", keep: str = "high") -> Description:
    return Description(name=name, source="a test", licence="MIT", low=0, high=1, keep=keep)


def write_linear(
    path: Path,
    weights: Sequence[float] | NDArray[np.float64],
    model: ModelIdentity = MODEL,
    keep: str = "high",
) -> Path:
    """Write a linear head over vectors of the weights' width, and return its JSON file."""
    layer = Linear(np.array([weights], np.float64), np.zeros(1), "none")
    write_head(path, described(path.stem, keep), [layer], model)
    return path


@pytest.fixture
def make_head(tmp_path: Path) -> MakeHead:
    def make(weights: Sequence[float], name: str = "plain") -> Path:
        return write_linear(tmp_path / "heads" / f"{name}.json", weights)

    return make


@pytest.fixture
def first_dimension(make_head: MakeHead) -> Scorer:
    """A head whose score is the first of 8 dimensions of the unit vector."""
    return Scorer.load("first", str(make_head([1.0] + [0.0] * 7, "first")))
