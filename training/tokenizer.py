"""Train the shipped discrete autoencoder: ``python -m training.tokenizer``.

Render -> train -> judge -> write the weights and the model card. Training is seeded and resumes
from a checkpoint in ``.cache/training``. It needs no network.

The codebook starts as the k-means of latents once the encoder has settled a little, and is then
the moving mean of the latents that chose each code; codes that nothing chooses move to latents.
At last the codes stay as they are, and the decoder learns to draw what CLIP sees in the pictures,
too. The shipped weights are a moving mean of the trained ones.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from laion_assets.files import replace_folder
from laion_assets.generation import autoencoder
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.trainer import Schedule, fit, save_model

from . import tokenizer_features
from .corpus import DEFAULT_CACHE
from .tokenizer_card import judge_codes, write_card
from .tokenizer_features import SEEN, Features
from .tokenizer_pictures import Pixels, cached

STEPS = 1_500
BATCH = 8
ART_EVERY = 4
"""Passes from one picture of art to the next; the others are drawings."""
RATE = 4e-4
POLISH_STEPS, POLISH_RATE = 500, 2.5e-4
"""A second, gentler training of the first one's result."""
SHARPEN_STEPS, SHARPEN_RATE = 300, 3e-4
"""The last training, of the decoder alone."""
FEATURES = 1.0
"""Weight of the difference that CLIP sees. In a trial on earlier weights, 300 steps raised what
codes keep of the similarity as stored from 59 % to 97 %, and PSNR fell from 26.1 to 25.2 dB."""
PRECISION = "fp32"
"""Mixed precision takes many times as long on CPUs that have no bfloat16."""
NORM_GROUPS = 1
"""All channels are normalised together: in four groups, colours were learnt much more slowly."""
KMEANS_AT = 250
"""Passes before the codebook starts; until then nothing is quantised."""
GRADIENT = 1.0
"""Weight of the differences between neighbouring pixels: what makes edges sharp."""
COLOUR = 2.0
"""Weight of the colours of squares of as many pixels as a code stands for."""
COMMITMENT = 0.1
DECAY = 0.98
"""Of the codebook's moving means, a pass."""
WEIGHTS_DECAY = 0.99
"""Of the moving mean of all weights, a pass; it moves every few passes."""
AVERAGE_EVERY = 5
REVIVE_EVERY, REVIVE_UNTIL, UNUSED = 25, 0.7, 0.02
OPTIONS = GenerationOptions(preset="demo")
"""The demo's sizes, which the shipped autoencoder is for."""
RECIPE = hashlib.sha256(
    b"".join(Path(file).read_bytes() for file in (__file__, tokenizer_features.__file__))
).hexdigest()[:8]
"""Part of a checkpoint's name: what another recipe has begun is not continued."""


class Codebook:
    """The codes of a VQModel, moved by what chooses them and not by a gradient."""

    def __init__(self, quantize: Any) -> None:
        self.codes: torch.Tensor = quantize.embedding.weight.data
        self.chosen = torch.ones(len(self.codes))
        self.sums = self.codes.clone()

    def nearest(self, points: torch.Tensor) -> torch.Tensor:
        """Numbers of the codes nearest to points (n, channels)."""
        return torch.cdist(points, self.codes).argmin(1)

    def start(self, points: torch.Tensor) -> None:
        """Begin at the k-means of points (n, channels)."""
        self.codes.copy_(points[torch.randperm(len(points))[: len(self.codes)]])
        for _ in range(15):
            self._move(points, 0.0)
            self.revive(points)

    def see(self, points: torch.Tensor, found: torch.Tensor) -> None:
        """Move the codes towards the points that chose them."""
        self._move(points, DECAY, found)

    def revive(self, points: torch.Tensor) -> None:
        """Move codes that are hardly ever chosen to some of the points."""
        unused = self.chosen < UNUSED
        picked = points[torch.randint(len(points), (int(unused.sum()),))]
        self.codes[unused] = picked
        self.sums[unused], self.chosen[unused] = picked, 1.0

    def _move(self, points: torch.Tensor, decay: float, found: torch.Tensor | None = None) -> None:
        found = self.nearest(points) if found is None else found
        counts = torch.bincount(found, minlength=len(self.codes)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, found, points)
        self.chosen.mul_(decay).add_(counts, alpha=1 - decay)
        self.sums.mul_(decay).add_(sums, alpha=1 - decay)
        used = self.chosen > 1e-3
        self.codes[used] = self.sums[used] / self.chosen[used, None]


class Trainer:
    """The loss of a pass, and all that changes from one pass to the next without a gradient."""

    def __init__(self, model: Any, data: tuple[Pixels, Pixels], steps: int) -> None:
        self._model, self._data, self._steps = model, data, steps
        self.book = Codebook(model.quantize)
        self.mean = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.carried = {
            "chosen": self.book.chosen,
            "sums": self.book.sums,
            **{f"mean/{name}": tensor for name, tensor in self.mean.items()},
        }

    def batch(self, number: int, size: int = BATCH) -> torch.Tensor:
        """Pixels of a pass, (size, 3, side, side)."""
        rng = np.random.default_rng([OPTIONS.seed, 11, number])
        # The codebook's start sees many passes' worth, each ART_EVERY-th with a picture of art.
        art = size // BATCH // ART_EVERY if size > BATCH else int(number % ART_EVERY == 0)
        drawn = rng.integers(len(self._data[0]), size=size - art)
        return self._pixels(drawn, rng.integers(len(self._data[1]), size=art))

    def _pixels(self, drawn: NDArray[np.int64], art: NDArray[np.int64]) -> torch.Tensor:
        """Pixels of the drawings and pictures of art with these numbers, in order."""
        parts = zip(self._data, (drawn, art), strict=True)
        pixels = [rows[np.sort(which)] for rows, which in parts]
        return autoencoder.as_floats(np.concatenate(pixels), torch.device("cpu"))

    def loss(self, first: int, number: int) -> torch.Tensor:
        """Loss of a pass, of which ``first`` went before this training: see :func:`difference`.

        The latents' commitment to their codes is added.
        """
        number += first
        self._average(number)
        pixels = self.batch(number)
        if number == KMEANS_AT:
            with torch.no_grad():
                latents = self._model.encode(self.batch(number, 64 * BATCH)).latents
            self.book.start(_points(latents))
        latents = self._model.encode(pixels).latents.float()
        if number < KMEANS_AT:
            return difference(self._decoded(latents), pixels)
        points = _points(latents)
        with torch.no_grad():
            found = self.book.nearest(points)
            nearest = self.book.codes[found]
            self.book.see(points, found)
            if number % REVIVE_EVERY == 0 and number < REVIVE_UNTIL * self._steps:
                self.book.revive(points.detach())
        commitment = functional.mse_loss(points, nearest)
        through = latents + (_grid(nearest, latents) - latents).detach()
        return difference(self._decoded(through), pixels) + COMMITMENT * commitment

    def sharpening_loss(self, features: Features, first: int, number: int) -> torch.Tensor:
        """Loss of a pass of the last training: :func:`difference`, and what CLIP sees."""
        number += first
        self._average(number)
        rng = np.random.default_rng([OPTIONS.seed, 12, number])
        rows = np.sort(rng.integers(SEEN, size=BATCH))
        # What has been learnt of art is not to be forgotten.
        pixels = self._pixels(rows, rng.integers(len(self._data[1]), size=1))
        with torch.no_grad():
            latents = self._model.encode(pixels).latents.float()
            points = _points(latents)
            nearest = self.book.codes[self.book.nearest(points)]
        decoded = self._decoded(_grid(nearest, latents))
        seen = features.difference(decoded[:BATCH], torch.from_numpy(rows))
        return difference(decoded, pixels) + FEATURES * seen

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self._model.decode(latents, force_not_quantize=True).sample
        return decoded.float()

    @torch.no_grad()
    def _average(self, number: int) -> None:
        if number % AVERAGE_EVERY:
            return
        decay = min(WEIGHTS_DECAY, (1 + number) / (10 + number)) ** AVERAGE_EVERY
        for name, tensor in self._model.state_dict().items():
            self.mean[name].lerp_(tensor.float(), 1 - decay)


def difference(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of pixels, of each pixel's step to the next, and of mean colours."""
    off = decoded - pixels
    across, down = off.diff(dim=-1).abs().mean(), off.diff(dim=-2).abs().mean()
    colour = functional.avg_pool2d(off, OPTIONS.shrink).abs().mean()
    return off.abs().mean() + GRADIENT * (across + down) + COLOUR * colour


def _points(latents: torch.Tensor) -> torch.Tensor:
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).float()


def _grid(points: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    n, channels, height, width = like.shape
    return points.reshape(n, height, width, channels).permute(0, 3, 1, 2)


@torch.no_grad()
def start(model: Any) -> None:
    """Begin near the identity: begun at random, colours took many times as long.

    Residual branches add nothing at first, and what changes a resolution keeps its channels.
    """
    for name, module in model.named_modules():
        if name.endswith("conv2"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif name.endswith(("samplers.0.conv", "conv_shortcut")):
            nn.init.zeros_(module.bias)
            kept = nn.init.dirac_(torch.empty_like(module.weight))
            if "downsamplers" in name:
                kept = kept.amax((2, 3), keepdim=True).expand_as(kept) / 9
            module.weight.mul_(0.1).add_(kept)


def train(cache: Path, steps: int) -> Any:
    """Train, or resume; return the model of averaged weights in eval mode."""
    data = cached(cache, OPTIONS.image_size)
    model = autoencoder.build(OPTIONS, NORM_GROUPS)
    start(model)
    # Codes move without gradients.
    model.quantize.requires_grad_(False)
    trainer = Trainer(model, data, steps)
    first = 0

    def go_on(what: str, more: int, rate: float, loss: Callable[[int, int], torch.Tensor]) -> None:
        nonlocal first
        fit(
            what,
            model,
            functools.partial(loss, first),
            Schedule(more, rate, OPTIONS.seed + first, PRECISION),
            cache / "tokenizer" / f"{what}-{steps}-{RECIPE}.safetensors",
            carried=trainer.carried,
        )
        first += more

    go_on("tokenizer", steps, RATE, trainer.loss)
    go_on("polish", POLISH_STEPS, POLISH_RATE, trainer.loss)
    model.load_state_dict(trainer.mean)
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(False)
    sharpening = functools.partial(trainer.sharpening_loss, Features(cache))
    go_on("sharpen", SHARPEN_STEPS, SHARPEN_RATE, sharpening)
    model.load_state_dict(trainer.mean)
    return model.eval()


def write_shipped(model: Any, folder: Path) -> Any:
    """Write a model in half precision, as it is shipped; return it as it is loaded."""
    partial = folder.with_name(f"{folder.name}.partial")
    save_model(copy.deepcopy(model).half(), partial)
    replace_folder(partial, folder)
    return autoencoder.load(folder, OPTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = autoencoder.weights_folder(autoencoder.SHIPPED)
    model = write_shipped(train(args.cache, args.steps), folder)
    drawings, art = cached(args.cache, OPTIONS.image_size)
    report = judge_codes(model, OPTIONS.image_size) | {
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "steps": args.steps + POLISH_STEPS,
        "sharpened": SHARPEN_STEPS,
        "seen": SEEN,
        "batch": BATCH,
        "drawings": len(drawings),
        "art": len(art),
    }
    write_card(folder / "MODEL_CARD.md", folder, report)


if __name__ == "__main__":
    main()
