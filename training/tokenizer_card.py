"""Judgement of the shipped autoencoder, and its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from laion_assets.generation import autoencoder
from laion_assets.generation.subjects import colours, subject

from .compose import STORED_SIZE
from .corpus import sources
from .sample_inputs import STYLES
from .tokenizer_features import shipped_clip
from .tokenizer_pictures import TEST_DRAWINGS, Pixels, art, drawings

BATCH = 64
_CARD = """# {name}

A small discrete autoencoder (VQGAN's architecture without its discriminator) for demonstrations and
tests: it turns a picture of {size} × {size} pixels into {side} × {side} codes and back, and lets a
small DALL-E be trained in minutes on a CPU. It knows simple drawings; it is **no replacement for a
VQGAN trained on photographs**. Made by `python -m training.tokenizer`.

## Model
| part | what it is |
|---|---|
| architecture | diffusers `VQModel`, channels {channels}, one residual block at each resolution |
| codes | {codebook}, each of {code_channels} numbers, for {shrink} × {shrink} pixels |
| parameters | {parameters:.1f} million; {megabytes:.1f} MB, float16 safetensors |
| digest | `{digest}` (`laion_assets.generation.autoencoder.weights_digest`) |

The loss is the mean absolute difference of pixels, of each pixel's step to the next, and of the
mean colours of {shrink} × {shrink} pixels. The codebook starts as the k-means of latents; codes
move to the mean of the latents that choose them, and unused ones to latents. The weights are a
moving mean. {steps:,} steps of {batch} pictures, float32, on one CPU core.

In {sharpened} more steps of {batch} drawings and a picture of art the codes stayed as they
were, and the decoder learnt with a second loss for the drawings: 1 less the cosine between the
embeddings, by `laion-assets-tiny`, of the decoded picture and of the drawing as a shard stores it.
The drawings were the first {seen:,} of those below.

## Data
{drawings:,} drawings made by `laion_assets/sample_crawl/drawings.py` (MIT, as this repository),
from other seeds than the drawn crawl's, and {art:,} views of the sample crawl's pictures
(`laion_assets/sample_crawl/data/ATTRIBUTION.md`). Steps draw from them at random, so that not
all of them were seen:

| art | licence | attribution |
|---|---|---|
{styles}

One in ten combinations of colour, thing and background, and one in ten art concepts, were not
trained on. They are what the figures are of.

## Figures
| | {test_drawings} drawings | {test_art} pictures of art |
|---|---|---|
| PSNR | {drawings_psnr:.1f} dB | {art_psnr:.1f} dB |
| mean error of a colour value, of 255 | {drawings_error:.1f} | {art_error:.1f} |
| background's colour kept | {background:.1%} | |
| thing's colour kept | {colour:.1%} | |
| codes used | {used} of {codebook} (perplexity {perplexity:.0f}) | {art_used} of {codebook} |

`laion-assets-tiny`'s mean similarity of the drawings with their captions is {stored:.3f} as stored
at 256 pixels, {at_size:.3f} at {size} and {through:.3f} through the codes: {kept:.1%} of that as
stored. The decoder learnt from this very model, so that this is no independent measure; PSNR and
colours are.

## Limits
- Art is blurred, and photographs more so: eight by eight codes do not hold them.
- Edges and corners are softer than the drawings'.
- The drawings' own colours come back best.
"""


def judge_codes(model: Any, size: int) -> dict[str, float]:
    """Figures of a model on held-out pictures."""
    pixels, captions = drawings(TEST_DRAWINGS, size, held_out=True)
    other = art(size, held_out=True)
    figures: dict[str, float] = {"test_drawings": len(pixels), "test_art": len(other)}
    through = {}
    for name, some in (("drawings", pixels), ("art", other)):
        codes = autoencoder.encode(model, some)
        made = through[name] = autoencoder.decode(model, codes, BATCH)
        off = made.astype(np.float64) - some
        figures[f"{name}_psnr"] = float(
            np.mean(10 * np.log10(255**2 / np.square(off).mean((1, 2, 3))))
        )
        figures[f"{name}_error"] = float(np.abs(off).mean())
        uses = np.bincount(codes.ravel()) / codes.size
        figures["used" if name == "drawings" else f"{name}_used"] = int((uses > 0).sum())
        if name == "drawings":
            figures["perplexity"] = float(np.exp(-(uses[uses > 0] * np.log(uses[uses > 0])).sum()))
    return (
        figures
        | _colours(through["drawings"], captions)
        | _similar(through["drawings"], pixels, captions)
    )


def _colours(made: Pixels, captions: list[str]) -> dict[str, float]:
    """Shares of drawings whose background's and thing's colours are their caption's."""
    right = []
    for picture, caption in zip(made, captions, strict=True):
        drawing = subject(caption)
        assert drawing is not None
        ground, ink = colours(picture)
        right.append((ground == drawing.background, ink == drawing.colour))
    background, colour = np.mean(right, axis=0).tolist()
    return {"background": background, "colour": colour}


def _similar(through: Pixels, pixels: Pixels, captions: list[str]) -> dict[str, float]:
    """Mean similarity of drawings with their captions, and how much of it the codes keep."""
    clip = shipped_clip()
    said = clip.encode_texts(captions)
    stored, _ = drawings(len(pixels), STORED_SIZE, held_out=True)

    def mean(pictures: Pixels) -> float:
        vectors = clip.encode_images([Image.fromarray(one) for one in pictures])
        return float((vectors * said).sum(1).mean())

    means = {"stored": mean(stored), "at_size": mean(pixels), "through": mean(through)}
    return means | {"kept": means["through"] / means["stored"]}


def write_card(path: Path, folder: Path, report: dict[str, Any]) -> None:
    """Write the model card, in Markdown, of the model in ``folder``."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    shrink = 2 ** (len(config["block_out_channels"]) - 1)
    styles = "\n".join(
        f"| {source.style} | {source.licence} | {source.attribution} |"
        for source in sources()
        if source.style in STYLES
    )
    values = report | {
        "name": autoencoder.SHIPPED,
        "size": config["sample_size"],
        "side": config["sample_size"] // shrink,
        "shrink": shrink,
        "channels": ", ".join(map(str, config["block_out_channels"])),
        "codebook": config["num_vq_embeddings"],
        "code_channels": config["latent_channels"],
        "megabytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6,
        "digest": autoencoder.weights_digest(folder),
        "styles": styles,
    }
    path.write_text(_CARD.format(**values), "utf-8")
