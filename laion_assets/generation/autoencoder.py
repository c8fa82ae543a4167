"""The discrete autoencoder (diffusers' VQModel): turns an image into a grid of codes and back."""

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

SHIPPED: Final = "laion-assets-tiny-vq"
"""Name of the autoencoder in the package, in place of a folder."""

_REVIVE_EVERY: Final = 20
"""Forward passes between two revivals."""
_REVIVE_WINDOW: Final = 4
"""Latents per code of the codebook; a single pass of the demo has that many."""
_REVIVE_UNTIL: Final = 0.6
"""Share of the training after which no code is revived."""


class WrongWeightsError(ValueError):
    """Stored weights do not fit the options, or each other; the message gives both numbers."""


def build(options: GenerationOptions, norm_groups: int | None = None) -> Any:
    """Build an untrained VQModel whose weights are drawn from the seed.

    Channels are normalised in ``norm_groups`` groups; None: in as many as the options say.
    """
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
            norm_num_groups=norm_groups or options.vq_norm_groups,
            mid_block_add_attention=False,
        )


def weights_folder(name: str) -> Path:
    """Folder of a trained VQModel by ``vq_weights``: the shipped one's name, or the folder."""
    return Path(__file__).parent / "weights" / SHIPPED if name == SHIPPED else Path(name)


def load(folder: Path, options: GenerationOptions) -> Any:
    """Load a trained VQModel, as ``save_model`` or diffusers writes it, in eval mode.

    Weights that are stored in half precision are loaded as float32.

    Raises :class:`WrongWeightsError` if the folder holds no VQModel, or if its grid or codebook
    differs from the options.
    """
    import torch
    from diffusers import VQModel

    _refuse_other(folder)
    try:
        model = VQModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # which would need accelerate, and asks for it
        )
    except (OSError, ValueError) as error:
        raise WrongWeightsError(f"{folder} holds no VQModel: {error}") from error
    config = model.config
    codes, shrink = config.num_vq_embeddings, 2 ** (len(config.block_out_channels) - 1)
    if (codes, shrink) != (options.codebook, options.shrink):
        raise WrongWeightsError(
            f"{folder} has {codes} codes, each for {shrink} pixels a side, but the options say"
            f" {options.codebook} and {options.shrink}: set codebook and vq_channels to match it,"
            ' or vq_weights = "" to train an autoencoder first'
        )
    return model.eval()


def _refuse_other(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise WrongWeightsError(
            f"{folder} holds no VQModel: set vq_weights to a folder that does, to {SHIPPED!r}, or"
            " to nothing to train an autoencoder first"
        )


def weights_digest(folder: Path) -> str:
    """Digest of a VQModel's files; it does not depend on the folder's path.

    Raises :class:`WrongWeightsError` for a folder without them.
    """
    _refuse_other(folder)
    files = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    digests = [[path.name, sha256_file(path)] for path in sorted(files)]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:32]


def train(
    model: Any,
    batch_of: Callable[[int], Pixels],
    options: GenerationOptions,
    precision: str,
    checkpoint: Path,
    *,
    held_out: Callable[[], float] | None = None,
) -> list[Point]:
    """Train in place and return the loss curve.

    The curve's loss is :func:`reconstruction_loss` plus the codes' commitment loss.

    Args:
        batch_of: returns the images of a forward pass by its number, uint8 (n, side, side, 3).
    """
    device = next(model.parameters()).device
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
        Schedule.of_autoencoder(options, precision),
        checkpoint,
        held_out=held_out,
        carried=reviver.carried,
        watch=reviver.watch,
    )


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference plus mean squared difference of pixel values from -1 to 1."""
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
    """Convert uint8 (n, side, side, 3) to float32 (n, 3, side, side), from -1 to 1."""
    import torch

    moved = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
    return moved.float().div_(127.5).sub_(1).contiguous()


class _Reviver:
    """Revival of unused codes: those that no latent was nearest to for a while move to latents.

    Codes start near zero. Without revival most would never be used, and a few would serve for
    everything. A code counts as unused after a window that holds several times as many latents as
    there are codes: in a shorter one, good codes would be unused by chance, and lost.
    """

    def __init__(self, quantize: Any, options: GenerationOptions) -> None:
        import torch

        self._quantize = quantize
        latents = options.vq_batch * options.image_tokens
        self.window = math.ceil(_REVIVE_WINDOW * options.codebook / latents)
        """Length of the window in forward passes, including the one that revives."""
        self._every = max(_REVIVE_EVERY, self.window)
        self._until = options.vq_steps * options.vq_accumulate * _REVIVE_UNTIL
        used = torch.zeros(options.codebook, dtype=torch.int64)
        self.carried = {"codes_used": used.to(quantize.embedding.weight.device)}
        """State for the checkpoint: how often each code was used in the window so far."""
        self._optimizer: torch.optim.Optimizer | None = None

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimiser whose moments of moved codes must be reset."""
        self._optimizer = optimizer

    def see(self, number: int, latents: torch.Tensor) -> None:
        """Count the latents of forward pass ``number``, (n, channels, side, side).

        At the end of a window, move the unused codes.
        """
        import torch

        # A window ends with a pass whose number is a multiple of `_every`.
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
        # The moments belong to the codes' former places.
        state = self._optimizer.state.get(weight, {}) if self._optimizer else {}
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in state:
                state[moment][unused] = 0


def encode(model: Any, pixels: Pixels) -> Codes:
    """Encode images, uint8 (n, side, side, 3), as codes, uint16 (n, codes), row by row."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        latents = model.encode(as_floats(pixels, device)).latents
        codes = model.quantize(latents)[2][2].reshape(len(pixels), -1)
    found: Codes = codes.cpu().numpy().astype(np.uint16)
    return found


def decode(model: Any, codes: Codes, batch: int) -> Pixels:
    """Decode codes (n, codes) into images, uint8 (n, side, side, 3), ``batch`` at a time."""
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
