"""Evaluation of the shipped file as users load it: by open_clip, on pictures of held-out styles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

from .captions import spoken_name, test_caption
from .compose import encode
from .corpus import Glyph, names
from .features import picture
from .metrics import judge, pair_cosines
from .model import NAME
from .split import SEED, Split

MISMATCHED_KEPT = 0.02

Vectors = NDArray[np.float32]


class Shipped:
    """The model as ``open_clip.create_model_and_transforms`` loads it from a weights file."""

    def __init__(self, weights: Path) -> None:
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            NAME, pretrained=str(weights)
        )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(NAME)

    @torch.inference_mode()
    def pictures(self, glyphs: list[Glyph], cache: Path) -> Vectors:
        """Unit embeddings of the glyphs' evaluation pictures, (n, d)."""
        rows = []
        for glyph in glyphs:
            pixels = self.preprocess(picture(glyph, cache, "eval"))
            rows.append(self.model.encode_image(pixels[None], normalize=True).numpy())
        return np.concatenate(rows)

    @torch.inference_mode()
    def texts(self, lines: list[str]) -> Vectors:
        """Unit embeddings of whole texts, (n, d)."""
        tokens = self.tokenizer(lines).split(64)
        rows = [self.model.encode_text(part, normalize=True).numpy() for part in tokens]
        return np.concatenate(rows)


def evaluate(shipped: Shipped, cut: Split, cache: Path) -> dict[str, Any]:
    """Measure figures on the test concepts, and set a threshold by the calibration concepts.

    The threshold is the cosine that ``MISMATCHED_KEPT`` of the calibration set's mismatched pairs
    reach, rounded to two decimal places; the share that it keeps is measured on the test set.
    """
    rng = np.random.default_rng(SEED)
    framed = [test_caption(glyph, rng) for glyph in cut.test]
    images = shipped.pictures(cut.test, cache)
    captions = shipped.texts(framed)
    bare = shipped.texts([spoken_name(glyph.name) for glyph in cut.test])

    rng = np.random.default_rng(SEED + 1)
    other_captions = shipped.texts([test_caption(glyph, rng) for glyph in cut.calibration])
    other_images = shipped.pictures(cut.calibration, cache)
    _, mismatched = pair_cosines(other_images, other_captions)
    threshold = round(float(np.quantile(mismatched, 1 - MISMATCHED_KEPT)), 2)

    matched, mismatched = pair_cosines(images, captions)
    styles = sorted({glyph.style for glyph in cut.test})
    return {
        "framed_captions": judge(images, captions),
        "bare_names": judge(images, bare),
        "calibration_captions": judge(other_images, other_captions),
        "threshold": threshold,
        "threshold_keeps_matched": round(float((matched >= threshold).mean()), 4),
        "threshold_keeps_mismatched": round(float((mismatched >= threshold).mean()), 4),
        "threshold_keeps_matched_by_style": {
            style: round(
                float(
                    np.mean(
                        [
                            cosine >= threshold
                            for cosine, glyph in zip(matched, cut.test, strict=True)
                            if glyph.style == style
                        ]
                    )
                ),
                4,
            )
            for style in styles
        },
        "other_languages": {
            language: _in_language(shipped, cut.test, images, language, cache, threshold)
            for language in ("de", "fr", "ru", "zh")
        },
        "worst_matched": [
            {"name": cut.test[at].name, "style": cut.test[at].style, "cosine": float(matched[at])}
            for at in np.argsort(matched)[:15]
        ],
    }


def _in_language(
    shipped: Shipped,
    glyphs: list[Glyph],
    images: Vectors,
    language: str,
    cache: Path,
    threshold: float,
) -> dict[str, float]:
    """Share of pairs with a name in another language that the threshold keeps."""
    named = [(at, names(glyph.concept, language, cache)) for at, glyph in enumerate(glyphs)]
    known = [(at, name) for at, name in named if name]
    cosines = (images[[at for at, _ in known]] * shipped.texts([n for _, n in known])).sum(1)
    return {"kept": round(float((cosines >= threshold).mean()), 4)}


def write_samples(folder: Path, glyphs: list[Glyph], cache: Path) -> None:
    """Write held-out pictures with captions, to check the weights quickly without the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    listed = []
    for glyph in glyphs:
        name = f"{glyph.style}-{glyph.concept}.webp"
        (folder / name).write_bytes(encode(picture(glyph, cache, "eval"), "WEBP", 80))
        listed.append(
            {
                "file": name,
                "caption": test_caption(glyph, rng),
                "licence": glyph.licence,
                "attribution": glyph.attribution,
            }
        )
    (folder / "captions.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
