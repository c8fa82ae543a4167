"""What a caption of the drawn crawl names, and what a picture of it shows."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from laion_assets.generation.subjects import Shares, colours, judge, subject, with_each_thing
from laion_assets.sample_crawl.drawings import THINGS, Drawing, every_drawing, render


def test_every_caption_of_a_drawing_names_it() -> None:
    for drawing in every_drawing():
        assert {subject(caption) for caption in drawing.captions()} == {drawing}
    assert subject("A RED HEART ON A BLUE BACKGROUND") == Drawing("red", "heart", "blue")
    assert subject("An orange fish on a white background") == Drawing("orange", "fish", "white")
    for other in (
        "A red heart",
        "A red heart on a red background",
        "a red dog on a blue background",
    ):
        assert subject(other) is None


def test_a_caption_is_said_of_each_thing() -> None:
    said = with_each_thing(
        "This is a red star, drawn on a blue background", Drawing("red", "star", "blue")
    )
    assert len(set(said)) == len(THINGS)
    assert {subject(text) for text in said} == {Drawing("red", thing, "blue") for thing in THINGS}


def test_the_colours_of_drawings_are_seen() -> None:
    rng = random.Random(3)
    for number, drawing in enumerate(rng.sample(every_drawing(), 60)):
        image = Image.open(io.BytesIO(render(drawing, 777 + number))).resize((64, 64))
        assert colours(np.asarray(image)) == (drawing.background, drawing.colour)


def test_a_picture_without_a_thing_has_no_colour() -> None:
    pixels = np.full((32, 32, 3), (175, 212, 245), np.uint8)
    assert colours(pixels) == ("blue", None)
    pixels[15, 15] = (200, 30, 30)
    assert colours(pixels) == ("blue", None)
    pixels[10:20, 10:20] = (200, 30, 30)
    assert colours(pixels) == ("blue", "red")


def test_background_colour_and_thing_are_judged_apart() -> None:
    pixels = np.full((2, 32, 32, 3), (175, 212, 245), np.uint8)
    pixels[0, 8:24, 8:24] = (214, 40, 40)
    pixels[1] = (250, 250, 248)
    pixels[1, 8:24, 8:24] = (35, 35, 40)
    things = np.eye(len(THINGS), dtype=np.float32)
    vectors = things[[list(THINGS).index("heart"), list(THINGS).index("star")]]
    verdicts = judge(Drawing("red", "star", "blue"), pixels, vectors, things)
    assert verdicts.tolist() == [[True, True, False], [False, False, True]]
    assert Shares.of(verdicts) == Shares(0.5, 0.5, 0.5, 2)
    assert Shares.of(verdicts[:1]).thing == pytest.approx(0)
