"""The shipped weights, loaded as any user of open_clip would, on pictures of unseen styles."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from training.metrics import auc, judge, pair_cosines, recall

PACKAGE = Path(__file__).parents[2] / "laion_assets" / "clip"
NAME = "laion-assets-tiny"
WEIGHTS = PACKAGE / "weights" / f"{NAME}.safetensors"
SAMPLES = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Loaded:
    model: Any
    images: NDArray[np.float32]
    captions: NDArray[np.float32]
    complaints: list[str]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    complaints: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            open_clip.add_model_config(PACKAGE / "model_configs")
            model, _, preprocess = open_clip.create_model_and_transforms(
                NAME, pretrained=str(WEIGHTS)
            )
    finally:
        logging.getLogger().removeHandler(handler)
    listed = json.loads((SAMPLES / "captions.json").read_text("utf-8"))
    pixels = [preprocess(Image.open(SAMPLES / entry["file"])) for entry in listed]
    tokens = open_clip.get_tokenizer(NAME)([entry["caption"] for entry in listed])
    model.eval()
    with torch.inference_mode():
        images = model.encode_image(torch.stack(pixels), normalize=True).numpy()
        captions = model.encode_text(tokens, normalize=True).numpy()
    return Loaded(model, images, captions, complaints)


def test_weights_are_small_and_half_precision() -> None:
    assert WEIGHTS.stat().st_size < 25_000_000
    kinds = {value.dtype for value in load_file(WEIGHTS).values() if value.is_floating_point()}
    assert kinds == {torch.float16}


def test_open_clip_loads_them_whole_in_single_precision(loaded: Loaded) -> None:
    assert loaded.complaints == []
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    config = json.loads((PACKAGE / "model_configs" / f"{NAME}.json").read_text("utf-8"))
    assert loaded.images.shape[1] == loaded.captions.shape[1] == config["embed_dim"]
    np.testing.assert_allclose(np.linalg.norm(loaded.images, axis=1), 1, atol=1e-5)


def test_held_out_pictures_and_captions_find_each_other(loaded: Loaded) -> None:
    figures = judge(loaded.images, loaded.captions)
    assert figures["auc"] >= 0.97
    assert figures["image_to_text_recall_1"] >= 0.6
    assert figures["text_to_image_recall_1"] >= 0.6


def test_the_table_threshold_parts_matched_from_mismatched(loaded: Loaded) -> None:
    table = json.loads((PACKAGE / "thresholds.json").read_text("utf-8"))
    (threshold,) = (of["threshold"] for key, of in table.items() if key.startswith(f"{NAME}/"))
    matched, mismatched = pair_cosines(loaded.images, loaded.captions)
    assert (matched >= threshold).mean() >= 0.8
    assert (mismatched >= threshold).mean() <= 0.05


def test_metrics_on_known_similarities() -> None:
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.2, 0.7]])
    assert recall(similarity, 1) == pytest.approx(2 / 3)
    assert recall(similarity, 2) == pytest.approx(2 / 3)
    assert recall(similarity, 3) == 1
    assert auc(np.array([0.5, 0.9]), np.array([0.1, 0.5])) == pytest.approx(0.875)
