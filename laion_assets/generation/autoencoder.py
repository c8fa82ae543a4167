"""The discrete autoencoder: images to a grid of codes and back (diffusers' VQModel)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.files import sha256_file
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.trainer import Point, Schedule, fit

if TYPE_CHECKING:
    import torch

Pixels = NDArray[np.uint8]
Codes = NDArray[np.uint16]

_REVIVE_EVERY: Final = 20
_REVIVE_WINDOW: Final = 4
"""Latents for each code of the codebook. The demo sees as many in a single pass."""
_REVIVE_UNTIL: Final = 0.6


class WrongWeightsError(ValueError):
    """Weights of an autoencoder that does not make what the options say."""


def build(options: GenerationOptions) -> Any:
    """An untrained VQModel, its weights drawn from the seed."""
    import torch
    from diffusers import VQModel

    levels = len(options.vq_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return VQModel(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(options.vq_channels),
            layers_per_block=options.vq_blocks,
            latent_channels=options.code_channels,
            sample_size=options.image_size,
            num_vq_embeddings=options.codebook,
            norm_num_groups=options.vq_norm_groups,
            mid_block_add_attention=False,
        )


def load(folder: Path, options: GenerationOptions) -> Any:
    """A trained VQModel that :func:`save`, or diffusers, has written.

    Raises :class:`WrongWeightsError` if its grid or its codebook is not that of the options.
    """
    from diffusers import VQModel

    try:
        model = VQModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise WrongWeightsError(f"{folder} holds no VQModel: {error}") from error
    config = model.config
    has = (config.num_vq_embeddings, 2 ** (len(config.block_out_channels) - 1))
    if has != (options.codebook, options.shrink):
        raise WrongWeightsError(
            f"{folder} has {has[0]} codes, each for {has[1]} pixels a side; the options say"
            f" {options.codebook} and {options.shrink}: set codebook and vq_channels by it"
        )
    return model.eval()


def weights_digest(folder: Path) -> str:
    """Of the files of a VQModel, wherever they lie."""
    files = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    digests = [[path.name, sha256_file(path)] for path in sorted(files)]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:32]


def save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, safe_serialization=True)


def train(
    model: Any,
    batch_of: Callable[[int], Pixels],
    options: GenerationOptions,
    precision: str,
    checkpoint: Path,
    *,
    held_out: Callable[[], float] | None = None,
) -> list[Point]:
    """Train in place; the curve's loss is :func:`reconstruction_loss` and the codes' commitment.

    Args:
        batch_of: the images of forward pass number n, uint8 (n, side, side, 3).
    """

    device = next(model.parameters()).device
    schedule = Schedule.of(
        options,
        precision,
        steps=options.vq_steps,
        rate=options.vq_rate,
        accumulate=options.vq_accumulate,
    )
    reviver = _Reviver(model.quantize, options)

    def loss_of(number: int) -> torch.Tensor:
        pixels = as_floats(batch_of(number), device)
        latents = model.encode(pixels).latents
        reviver.see(number, latents.detach().float())
        decoded = model.decode(latents)
        commitment: torch.Tensor = decoded.commit_loss.mean()
        return reconstruction_loss(decoded.sample, pixels) + commitment

    return fit(
        "autoencoder",
        model,
        loss_of,
        schedule,
        checkpoint,
        held_out=held_out,
        carried=reviver.carried,
        watch=reviver.watch,
    )


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute and mean squared difference, of values from -1 to 1."""
    difference = decoded.float() - pixels
    return difference.abs().mean() + difference.square().mean()


def held_out_loss(model: Any, batches: Iterable[Pixels]) -> float:
    """Mean :func:`reconstruction_loss` over the images of all batches."""
    import torch

    device = next(model.parameters()).device
    total, images = 0.0, 0
    with torch.inference_mode():
        for pixels in batches:
            some = as_floats(pixels, device)
            total += float(reconstruction_loss(model(some).sample, some)) * len(some)
            images += len(some)
    return total / images


def as_floats(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """uint8 (n, side, side, 3) -> float32 (n, 3, side, side) from -1 to 1."""
    import torch

    moved = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    return moved.float().div_(127.5).sub_(1).contiguous()


class _Reviver:
    """Puts codes that no latent was nearest to, for a while, to where latents are.

    Codes start near zero, all but a few would never be used, and the rest would have to do all.
    A code counts as unused if it was so over a window of several times as many latents as there
    are codes: among fewer than that, good codes would go unmet by chance, and be lost.
    """

    def __init__(self, quantize: Any, options: GenerationOptions) -> None:
        import torch

        self._quantize = quantize
        latents = options.vq_batch * options.image_tokens
        self.window = math.ceil(_REVIVE_WINDOW * options.codebook / latents)
        """In forward passes, the one that revives included."""
        self._every = max(_REVIVE_EVERY, self.window)
        self._until = options.vq_steps * options.vq_accumulate * _REVIVE_UNTIL
        used = torch.zeros(options.codebook, dtype=torch.int64)
        self.carried = {"codes_used": used.to(quantize.embedding.weight.device)}
        """What a checkpoint has to keep: how often each code was used in the window so far."""
        self._optimizer: torch.optim.Optimizer | None = None

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """The moments are this one's."""
        self._optimizer = optimizer

    def see(self, number: int, latents: torch.Tensor) -> None:
        """Forward pass ``number`` has these latents (n, channels, side, side)."""
        import torch

        # The window ends with a pass whose number is a multiple of `_every`.
        left = -number % self._every
        if left >= self.window or number + left > self._until:
            return
        points = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        weight = self._quantize.embedding.weight
        codes, used = weight.data, self.carried["codes_used"]
        used += torch.bincount(torch.cdist(points, codes).argmin(1), minlength=len(codes))
        if left:
            return
        unused = used == 0
        used.zero_()
        picked = torch.randint(len(points), (int(unused.sum()),)).to(codes.device)
        codes[unused] = points[picked]
        # The moments are of where the codes were.
        state = self._optimizer.state.get(weight, {}) if self._optimizer else {}
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][unused] = 0


def encode(model: Any, pixels: Pixels) -> Codes:
    """Images uint8 (n, side, side, 3) -> codes uint16 (n, codes), row by row."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        latents = model.encode(as_floats(pixels, device)).latents
        codes = model.quantize(latents)[2][2].reshape(len(pixels), -1)
    found: Codes = codes.cpu().numpy().astype(np.uint16)
    return found


def decode(model: Any, codes: Codes, batch: int) -> Pixels:
    """Codes (n, codes) -> images uint8 (n, side, side, 3)."""
    import torch

    device = next(model.parameters()).device
    side = round(codes.shape[1] ** 0.5)
    made = []
    with torch.inference_mode():
        for start in range(0, len(codes), batch):
            some = torch.from_numpy(codes[start : start + batch].astype(np.int64)).to(device)
            shape = (len(some), side, side, model.quantize.vq_embed_dim)
            quantised = model.quantize.get_codebook_entry(some.reshape(-1), shape)
            floats = model.decode(quantised, force_not_quantize=True).sample.float()
            bytes_ = floats.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
            made.append(bytes_.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made)
