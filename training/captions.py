"""Captions of drawings, and further texts that teach words to the text tower."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .corpus import Glyph

TEMPLATES = (
    "{}",
    "a {}",
    "a picture of a {}",
    "a photo of a {}",
    "{} emoji",
    "{} icon",
    "{} clipart",
    "cartoon of a {}",
    "an illustration of {}",
    "drawing of {}",
    "{} - free vector image",
    "cute {} sticker",
    "a {} on a plain background",
    "{} symbol",
)
# Words that alt texts put around a name and that do not describe the picture.
BEFORE = (
    "free", "new", "my", "the best", "this is the", "image:", "look at this", "beautiful", "simple",
    "funny", "modern", "high quality", "download", "small picture of the", "showing a", "buy",
    "large", "nice", "vintage", "my favourite", "stock photo of", "an old", "welcome:", "vector",
)  # fmt: skip
AFTER = (
    "design", "clip art", "illustration", "for kids", "in flat style", "for your website", "stock",
    "image", "template", "on a blue background", "in colour", "poster", "by our reader",
    "download", "- free download", "vector art", "for school", "print", "set", "logo",
)  # fmt: skip
# Never trained on, and unlike the templates above: alt texts as other sites may have them.
TEST_TEMPLATES = (
    "Colourful {} graphic",
    "{} isolated on a white backdrop",
    "Image of the {}",
    "Our new {} artwork",
    "Here you see {}",
)
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "orange", "purple")


@dataclass(frozen=True)
class Texts:
    """Training texts: ``captions[i]`` describes ``concepts[i]``, with odds ``odds[i]``; ``general``
    texts describe no drawing."""

    captions: list[str]
    concepts: list[str]
    odds: list[float]
    general: list[str]


def spoken_name(name: str) -> str:
    """Write a CLDR short name as people do: "flag: Bulgaria" becomes "flag of Bulgaria"."""
    name = re.sub(r"[“”‘’\"]", "", name)
    name = re.sub(r"^flag: ", "flag of ", name)
    name = re.sub(r"^keycap: ", "keycap ", name)
    return re.sub(r"\s+", " ", name.replace(":", "")).strip()


def test_caption(glyph: Glyph, rng: np.random.Generator) -> str:
    """Write an alt text in a frame that training never saw."""
    frame = TEST_TEMPLATES[int(rng.integers(len(TEST_TEMPLATES)))]
    return frame.format(spoken_name(glyph.name))


def texts(glyphs: list[Glyph], words: list[str], rng: np.random.Generator) -> Texts:
    """Make captions of every concept of ``glyphs``, and texts from general ``words``."""
    by_concept = {glyph.concept: glyph for glyph in glyphs}
    made = Texts([], [], [], [])

    def say(concept: str, caption: str, odds: float) -> None:
        made.captions.append(caption)
        made.concepts.append(concept)
        made.odds.append(odds)

    for concept, glyph in sorted(by_concept.items()):
        name = spoken_name(glyph.name)
        short = re.sub(r" (face|button)$", "", name)
        say(concept, name, 3.0)
        for frame in rng.choice(TEMPLATES[1:], 6, replace=False):
            say(concept, str(frame).format(name), 0.6)
        for frame in rng.choice(TEMPLATES[1:], 2, replace=False):
            say(concept, str(frame).format(short), 0.6)
        if short != name:
            say(concept, short, 1.0)
        others = [word for word in glyph.keywords if word.lower() != name.lower()]
        for word in others:
            say(concept, word, 0.8 / len(others))
            frame = TEMPLATES[int(rng.integers(1, len(TEMPLATES)))]
            say(concept, frame.format(word), 0.6 / len(others))
            say(concept, f"{name} {word}", 0.8 / len(others))
        for _ in range(5):
            before = rng.choice(BEFORE) if rng.random() < 0.7 else ""
            after = rng.choice(AFTER) if rng.random() < 0.7 else ""
            said = name if rng.random() < 0.7 else short
            say(concept, f"{before} {said} {after}".strip(), 1.0)

    nouns = sorted(
        {spoken_name(glyph.name) for glyph in by_concept.values()}
        | {word for glyph in by_concept.values() for word in glyph.keywords}
    )
    made.general.extend(words)
    made.general.extend(f"a {word}" for word in words[:8000])
    for _ in range(8000):
        colour = COLOURS[int(rng.integers(len(COLOURS)))]
        frame = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        made.general.append(frame.format(f"{colour} {nouns[int(rng.integers(len(nouns)))]}"))
    for _ in range(10000):
        count = int(rng.integers(2, 6))
        picked = rng.integers(0, min(8000, len(words)), count)
        made.general.append(" ".join(words[int(at)] for at in picked))
    for _ in range(5000):
        one, other = (nouns[int(at)] for at in rng.integers(0, len(nouns), 2))
        joint = ("and", "with a", "on a", "next to a")[int(rng.integers(4))]
        made.general.append(f"{one} {joint} {other}")
    return made
