"""Train the shipped watermark head: ``python -m training.watermark_head``.

Drawings -> pictures with and without a watermark -> the shipped CLIP's embeddings -> a linear
head -> its files in ``laion_assets/heads/shipped``, with its AUC on drawings of art families and on
watermark styles that it never saw. All of it is seeded; embeddings are cached in
``.cache/training``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.heads.convert import Description, Linear, write_head
from laion_assets.heads.head import SHIPPED

from .compose import compose, encode, stored, web_size
from .corpus import DEFAULT_CACHE, Glyph, load_corpus, rasterise
from .metrics import auc
from .model import NAME
from .split import SEED, split
from .watermarks import HELD_OUT, TAUGHT, Style, words

HEAD = SHIPPED / "watermark-tiny.json"
DRAWINGS = 450
CALIBRATION = 60
TEST = 160
_AT_ONCE = 32
_WORDS_SHARE = 0.3
"""Share of the pictures, marked or not, that have a word which is no watermark."""
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Weights of the squared norm that are tried; the calibration drawings choose."""

Vectors = NDArray[np.float32]


def published(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture as a site sends it and a shard stores it."""
    body = encode(picture, "JPEG", int(rng.integers(60, 96)))
    return stored(Image.open(io.BytesIO(body)))


def pictures(
    glyph: Glyph, cache: Path, rng: np.random.Generator, styles: Mapping[str, Style]
) -> list[Image.Image]:
    """One picture of a drawing without a watermark, and once with a mark of each style.

    The same picture stands below each mark, so that nothing but the mark tells them apart.
    """
    plain = compose(rasterise(glyph, cache, 384), rng, *web_size(rng))
    if rng.random() < _WORDS_SHARE:
        plain = words(plain, rng)
    return [
        published(made, rng) for made in (plain, *(mark(plain, rng) for mark in styles.values()))
    ]


def embedded(
    name: str,
    glyphs: list[Glyph],
    model: ClipModel,
    cache: Path,
    styles: Sequence[Mapping[str, Style]],
) -> Vectors:
    """Embeddings of :func:`pictures`, (n, 1 + number of styles, d), rounded as a lake has them.

    ``styles``: those of each drawing, of equal number.
    """
    listed = " ".join(f"{glyph.style}/{glyph.concept}" for glyph in glyphs)
    digest = hashlib.sha256(f"{SEED} {model.version} {listed}".encode()).hexdigest()[:12]
    file = cache / "features" / f"watermarks-{name}-{digest}.npy"
    if file.exists():
        return np.asarray(np.load(file), np.float32)
    rows, waiting = [], []
    for number, (glyph, of_glyph) in enumerate(zip(glyphs, styles, strict=True)):
        waiting += pictures(glyph, cache, np.random.default_rng([SEED, number]), of_glyph)
        if len(waiting) >= _AT_ONCE or glyph is glyphs[-1]:
            rows.append(model.encode_images(waiting))
            waiting = []
            print(f"{name}: {number + 1} of {len(glyphs)} drawings", flush=True)
    vectors = np.concatenate(rows).astype(np.float16).reshape(len(glyphs), -1, rows[0].shape[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, vectors)
    return vectors.astype(np.float32)


def fit(plain: Vectors, marked: Vectors, penalty: float) -> tuple[NDArray[np.float64], float]:
    """Weights (d,) and bias of a logistic regression, by Newton's method: exact and repeatable."""
    rows = np.concatenate([plain, marked]).astype(np.float64)
    rows = np.column_stack([rows, np.ones(len(rows))])
    target = np.repeat([0.0, 1.0], [len(plain), len(marked)])
    ridge = np.full(rows.shape[1], penalty / 100)
    ridge[-1] = 0.0
    weights = np.zeros(rows.shape[1])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-rows @ weights))
        slope = rows.T @ (target - chance) - ridge * weights
        curve = (rows * (chance * (1 - chance))[:, None]).T @ rows + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights += step
        if np.abs(step).max() < 1e-9:
            break
    return weights[:-1], float(weights[-1])


def measured(
    test: Vectors, styles: Mapping[str, NDArray[np.str_]], weights: Any, bias: float
) -> dict[str, Any]:
    """AUC by style, and what a score of 0.5 lets through.

    ``test``: embeddings of each drawing without a mark, with a taught one, with a held-out one, and
    with a word that is none, (n, 4, d). ``styles``: which marks these are, (n,) each.
    """
    scores = 1 / (1 + np.exp(-(test.astype(np.float64) @ weights + bias)))
    without, taught, held_out, wordy = scores.T
    of_style = {
        name: of_kind[styles[kind] == name]
        for kind, of_kind in (("taught", taught), ("held_out", held_out))
        for name in sorted(set(styles[kind].tolist()))
    }
    shown = {"without a mark": without, "with a word that is none": wordy, **of_style}
    return {
        "drawings": len(test),
        "auc_taught_styles": rounded(auc(taught, without)),
        "auc_held_out_styles": rounded(auc(held_out, without)),
        "auc_by_style": {name: rounded(auc(found, without)) for name, found in of_style.items()},
        "share_above_half": {
            name: rounded(float((found > 0.5).mean())) for name, found in shown.items()
        },
    }


def rounded(value: float) -> float:
    return round(value, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    options = parser.parse_args()
    model = load_clip(ClipOptions(model=NAME, pretrained=NAME, device="cpu", precision="fp32"))
    cut = split(load_corpus(options.cache))
    rng = np.random.default_rng(SEED)
    chosen = [cut.train[at] for at in rng.permutation(len(cut.train))[: DRAWINGS + CALIBRATION]]
    names = list(TAUGHT)
    mark = [{name: TAUGHT[name]} for name in rng.choice(names, len(chosen))]
    taught = embedded("taught", chosen, model, options.cache, mark)
    plain, marked = taught[:DRAWINGS, 0], taught[:DRAWINGS, 1]
    tried = {}
    for penalty in PENALTIES:
        weights, bias = fit(plain, marked, penalty)
        of_each = (taught[DRAWINGS:, at] @ weights for at in (1, 0))
        tried[penalty] = auc(*of_each)
    print("AUC on the calibration drawings by penalty:", tried)
    penalty = max(tried, key=lambda one: tried[one])
    weights, bias = fit(plain, marked, penalty)
    styles = {
        "taught": rng.choice(names, TEST),
        "held_out": rng.choice(list(HELD_OUT), TEST),
    }
    marks = [
        {"taught": TAUGHT[one], "held out": HELD_OUT[other], "words": words}
        for one, other in zip(styles["taught"], styles["held_out"], strict=True)
    ]
    test = embedded("test", cut.test[:TEST], model, options.cache, marks)
    figures = measured(test, styles, weights, bias)
    description = Description(
        name="watermark-tiny",
        version=1,
        about="Likelihood that the image bears a watermark, from 0 to 1; taught on drawings with "
        "planted marks",
        source="training/watermark_head.py of LAION Assets",
        licence="MIT",
        low=0.0,
        high=1.0,
        keep="low",
        calibration={
            "taught_drawings": DRAWINGS,
            "taught_styles": names,
            "held_out_styles": list(HELD_OUT),
            "penalty": penalty,
            "held_out_art": figures,
        },
    )
    layer = Linear(weights[None, :], np.array([bias]), "sigmoid")
    write_head(HEAD, description, [layer], model.identity)
    print(figures)


if __name__ == "__main__":
    main()
