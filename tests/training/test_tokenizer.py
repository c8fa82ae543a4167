"""The shipped autoencoder, on drawings that its training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from laion_assets.generation import autoencoder
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.subjects import colours, subject
from training.compose import STORED_SIZE
from training.tokenizer import Codebook
from training.tokenizer_features import Features, shipped_clip
from training.tokenizer_pictures import Pixels, drawings

FOLDER = autoencoder.weights_folder(autoencoder.SHIPPED)
SIZE = 64
PSNR_FLOOR = 24.0
"""In dB; the card has the figure of more drawings."""
KEPT_FLOOR = 0.9
"""Of the similarity with the caption."""


@pytest.fixture(scope="module")
def model() -> Any:
    return autoencoder.load(FOLDER, GenerationOptions(preset="demo"))


@pytest.fixture(scope="module")
def held_out() -> tuple[Pixels, list[str]]:
    return drawings(48, SIZE, held_out=True)


def test_it_is_small_and_half_precision_and_loads_in_single(model: Any) -> None:
    (weights,) = FOLDER.glob("*.safetensors")
    assert weights.stat().st_size < 6_000_000
    assert {value.dtype for value in load_file(weights).values()} == {torch.float16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_its_card_names_these_weights() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text("utf-8")
    assert f"`{autoencoder.weights_digest(FOLDER)}`" in card


def test_drawings_come_back_from_their_codes(
    model: Any, held_out: tuple[Pixels, list[str]]
) -> None:
    pixels, captions = held_out
    codes = autoencoder.encode(model, pixels)
    assert codes.shape == (len(pixels), 64)
    made = autoencoder.decode(model, codes, 16)
    off = np.square(made.astype(np.float64) - pixels).mean((1, 2, 3))
    assert np.mean(10 * np.log10(255**2 / off)) > PSNR_FLOOR
    for picture, caption in zip(made, captions, strict=True):
        drawing = subject(caption)
        assert drawing is not None
        assert colours(picture) == (drawing.background, drawing.colour)


def test_clip_finds_decoded_drawings_as_like_their_captions_as_stored_ones(
    model: Any, held_out: tuple[Pixels, list[str]]
) -> None:
    pixels, captions = (some[:24] for some in held_out)
    decoded = autoencoder.decode(model, autoencoder.encode(model, pixels), 24)
    stored, _ = drawings(24, STORED_SIZE, held_out=True)
    clip = shipped_clip()
    said = clip.encode_texts(captions)
    through, before = (
        (clip.encode_images([Image.fromarray(one) for one in some]) * said).sum(1).mean()
        for some in (decoded, stored)
    )
    assert through > KEPT_FLOOR * before


def test_training_and_judging_share_no_combination() -> None:
    said = [set(drawings(200, 8, held_out=held)[1]) for held in (False, True)]
    assert not said[0] & said[1]


def test_codes_move_to_what_chose_them_and_unused_ones_to_points() -> None:
    quantize = torch.nn.Module()
    quantize.embedding = torch.nn.Embedding(2, 1)
    quantize.embedding.weight.data = torch.tensor([[0.0], [10.0]])
    book = Codebook(quantize)
    for _ in range(1000):
        points = torch.tensor([[1.0], [2.0]])
        book.see(points, book.nearest(points))
    assert quantize.embedding.weight[0].item() == pytest.approx(1.5, abs=1e-3)
    assert quantize.embedding.weight[1].item() == pytest.approx(10)
    book.revive(points)
    assert quantize.embedding.weight[1].item() in (1.0, 2.0)


def test_small_drawings_are_like_their_own_stored_ones(tmp_path: Path) -> None:
    n = 6
    features = Features(tmp_path, n)
    pixels, _ = drawings(n, 64, held_out=False)
    small = autoencoder.as_floats(pixels, torch.device("cpu")).requires_grad_()
    right = features.difference(small, torch.arange(n))
    other = features.difference(small, torch.arange(n).roll(1))
    assert 0 <= right.item() < 0.5 * other.item()
    right.backward()
    assert small.grad is not None
    assert small.grad.abs().sum() > 0
