from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from laion_assets.filtering.figures import similarity_histogram
from laion_assets.filtering.score import score_segment
from laion_assets.safety.prompts import Categories
from tests.filtering.conftest import MakeEmbeddings, sample


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def test_the_histogram_shows_the_similarities_and_the_threshold(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings([sample(n, n / 100) for n in range(60)], [])
    score_segment(embeddings, tmp_path / "scored", categories)
    at_30 = similarity_histogram(tmp_path / "scored", 0.3)
    assert at_30 == similarity_histogram(tmp_path / "scored", 0.3)
    at_50 = similarity_histogram(tmp_path / "scored", 0.5)

    def line(png: bytes) -> float:
        image = pixels(png)
        red = (image[:, :, 0] > 150) & (image[:, :, 1] < 100) & (image[:, :, 2] < 80)
        return float(np.median(np.nonzero(red)[1]))

    assert line(at_30) < line(at_50)


def test_no_pairs_make_an_empty_histogram(tmp_path: Path) -> None:
    assert pixels(similarity_histogram(tmp_path, 0.3)).size
