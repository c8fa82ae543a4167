"""Simple drawings and their captions: a colour, a thing, a background.

This module draws them from a seed, so there can be any number of them, and a model that draws has
few enough things to learn in an hour on a CPU. What does not belong here: how they become a crawl
(``drawn_crawl``).
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Rgb = tuple[int, int, int]

COLOURS: Final[dict[str, Rgb]] = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 200, 30),
    "green": (56, 150, 60),
    "blue": (40, 90, 210),
    "purple": (130, 60, 180),
    "brown": (125, 75, 40),
    "black": (35, 35, 40),
}
BACKGROUNDS: Final[dict[str, Rgb]] = {
    "white": (250, 250, 248),
    "yellow": (253, 236, 160),
    "green": (190, 228, 180),
    "blue": (175, 212, 245),
    "pink": (250, 200, 215),
}
FRAMES: Final = (
    "Drawing of a {} {} on a {} background",
    "A {} {} on a {} background",
    "Picture of a {} {} on a {} background",
    "This is a {} {}, drawn on a {} background",
)
_SIDE: Final = 288
_OVERSAMPLED: Final = 2


@dataclass(frozen=True)
class Drawing:
    """The subject of a drawing."""

    colour: str
    thing: str
    background: str

    def captions(self) -> list[str]:
        """Describe the drawing in four ways."""
        texts = [frame.format(self.colour, self.thing, self.background) for frame in FRAMES]
        return [
            text.replace(" a orange", " an orange").replace("A orange", "An orange")
            for text in texts
        ]

    def caption(self, rng: random.Random) -> str:
        """Describe the drawing in one of the four ways."""
        return rng.choice(self.captions())


def every_drawing() -> list[Drawing]:
    """List all combinations in which the colours differ, in a fixed order."""
    return [
        Drawing(colour, thing, background)
        for colour in COLOURS
        for thing in THINGS
        for background in BACKGROUNDS
        if colour != background
    ]


def render(drawing: Drawing, seed: int) -> bytes:
    """Draw as a JPEG of 288 by 288 pixels; equal seeds give equal bytes.

    Size, place, tilt, shade and the paper's grain depend on the seed.
    """
    rng = np.random.default_rng([seed, 7])
    side = _SIDE * _OVERSAMPLED
    ground = _shade(BACKGROUNDS[drawing.background], rng, 6)
    ink = _shade(COLOURS[drawing.colour], rng, 14)
    mask = Image.new("L", (side, side))
    half = side * float(rng.uniform(0.33, 0.42))
    tilt = math.radians(float(rng.uniform(-8, 8)))
    middle = side / 2 + rng.uniform(-0.05, 0.05, 2) * side

    def place(x: float, y: float) -> Point:
        """Convert coordinates in the thing's own square, -1 to 1, to pixels."""
        turned = (x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt))
        return float(middle[0] + turned[0] * half), float(middle[1] + turned[1] * half)

    THINGS[drawing.thing](_Pen(ImageDraw.Draw(mask), place, half))
    mask = mask.reduce(_OVERSAMPLED)
    canvas = Image.new("RGB", (_SIDE, _SIDE), ground)
    # A soft edge of darker ink, as emoji have it.
    canvas.paste(_darker(ink), (0, _SIDE // 60), mask)
    canvas.paste(ink, (0, 0), mask)
    pixels = np.asarray(canvas).astype(np.int16)
    grain = rng.integers(-7, 8, (_SIDE, _SIDE, 1), np.int16)
    out = io.BytesIO()
    grainy = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    Image.fromarray(grainy).save(out, "JPEG", quality=80)
    return out.getvalue()


def _shade(colour: Rgb, rng: np.random.Generator, most: int) -> Rgb:
    red, green, blue = (
        min(255, max(0, part + int(rng.integers(-most, most + 1)))) for part in colour
    )
    return red, green, blue


def _darker(colour: Rgb) -> Rgb:
    red, green, blue = (int(part * 0.62) for part in colour)
    return red, green, blue


@dataclass(frozen=True)
class _Pen:
    """Draws on a mask, in the thing's own square: x and y from -1 to 1, y downwards."""

    on: ImageDraw.ImageDraw
    place: Callable[[float, float], Point]
    half: float

    def shape(self, *points: Point, fill: int = 255) -> None:
        self.on.polygon([self.place(*point) for point in points], fill=fill)

    def round(self, x: float, y: float, across: float, down: float = 0, fill: int = 255) -> None:
        down = down or across
        turn = np.linspace(0, 2 * math.pi, 60, endpoint=False)
        self.shape(
            *((x + across * math.cos(at), y + down * math.sin(at)) for at in turn), fill=fill
        )


def _circle(pen: _Pen) -> None:
    pen.round(0, 0, 0.95)


def _square(pen: _Pen) -> None:
    pen.shape((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))


def _triangle(pen: _Pen) -> None:
    pen.shape((0, -0.95), (1, 0.8), (-1, 0.8))


def _star(pen: _Pen) -> None:
    around = [math.pi * at / 5 - math.pi / 2 for at in range(10)]
    pen.shape(
        *(
            (
                (1 if at % 2 == 0 else 0.42) * math.cos(turn),
                (1 if at % 2 == 0 else 0.42) * math.sin(turn),
            )
            for at, turn in enumerate(around)
        )
    )


def _heart(pen: _Pen) -> None:
    turns = np.linspace(0, 2 * math.pi, 80, endpoint=False)
    pen.shape(
        *(
            (
                16 * math.sin(at) ** 3 / 17,
                -(
                    13 * math.cos(at)
                    - 5 * math.cos(2 * at)
                    - 2 * math.cos(3 * at)
                    - math.cos(4 * at)
                )
                / 17,
            )
            for at in turns
        )
    )


def _moon(pen: _Pen) -> None:
    pen.round(0, 0, 0.95)
    pen.round(0.45, -0.15, 0.8, fill=0)


def _house(pen: _Pen) -> None:
    pen.shape((0, -0.95), (1, -0.1), (-1, -0.1))
    pen.shape((-0.75, -0.1), (0.75, -0.1), (0.75, 0.9), (-0.75, 0.9))
    pen.shape((-0.2, 0.35), (0.2, 0.35), (0.2, 0.9), (-0.2, 0.9), fill=0)


def _fish(pen: _Pen) -> None:
    pen.round(-0.2, 0, 0.8, 0.55)
    pen.shape((0.35, 0), (1, -0.6), (1, 0.6))
    pen.round(-0.6, -0.12, 0.1, fill=0)


def _umbrella(pen: _Pen) -> None:
    pen.round(0, 0, 0.98, 0.9)
    pen.shape((-1.1, 0), (1.1, 0), (1.1, 1.1), (-1.1, 1.1), fill=0)
    for x in (-0.65, 0, 0.65):
        pen.round(x, 0.02, 0.24, 0.14, fill=0)
    pen.shape((-0.06, -0.2), (0.06, -0.2), (0.06, 0.85), (-0.06, 0.85))
    pen.shape((-0.06, 0.85), (-0.4, 0.85), (-0.4, 0.73), (-0.06, 0.73))


def _diamond(pen: _Pen) -> None:
    pen.shape((0, -1), (0.8, 0), (0, 1), (-0.8, 0))


def _balloon(pen: _Pen) -> None:
    pen.round(0, -0.3, 0.62, 0.7)
    pen.shape((-0.12, 0.5), (0, 0.36), (0.12, 0.5))
    pen.shape((-0.025, 0.45), (0.025, 0.45), (0.1, 1), (0.05, 1))


def _shirt(pen: _Pen) -> None:
    pen.shape(
        (-0.35, -0.8), (0.35, -0.8), (1, -0.4), (0.8, 0.1), (0.5, -0.1), (0.5, 0.9), (-0.5, 0.9),
        (-0.5, -0.1), (-0.8, 0.1), (-1, -0.4),
    )  # fmt: skip
    pen.round(0, -0.85, 0.25, fill=0)


THINGS: Final[dict[str, Callable[[_Pen], None]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "house": _house,
    "fish": _fish,
    "umbrella": _umbrella,
    "diamond": _diamond,
    "balloon": _balloon,
    "shirt": _shirt,
}
