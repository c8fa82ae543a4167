"""Options of the generation demo, with presets from two cores to the paper's size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from laion_assets.options import OPERATIONAL, Options

_LEAST_CHANNELS: Final = 4
PRESETS: Final = Path(__file__).parent / "presets"


def shipped_presets() -> list[str]:
    """Names of the presets in the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


class GenerationOptions(Options):
    """Training of the autoencoder and the transformer, and sampling. Omitted fields take the
    preset's values."""

    preset: str = Field(
        "demo", description="demo (64 pixels, 2 cores) or paper (256 pixels, one GPU)"
    )
    seed: int = Field(
        0, ge=0, description="Seed of the split, the order, the weights and the samples"
    )
    device: Annotated[str, OPERATIONAL] = Field(
        "auto", description="Device, as in [clip]: cpu, cuda, cuda:1 …"
    )
    precision: str = Field(
        "auto",
        pattern="^(auto|fp32|bf16|fp16)$",
        description="fp32, or mixed precision; auto is fp16 on CUDA and fp32 elsewhere",
    )
    decode_threads: Annotated[int, OPERATIONAL] = Field(
        2, ge=1, description="Threads that decode images"
    )
    checkpoint_every: Annotated[int, OPERATIONAL] = Field(
        100, ge=1, description="Steps between two checkpoints, from which a killed training resumes"
    )

    held_out_share: float = Field(
        0.05, gt=0, lt=1, description="Share of the captions that are held out from all training"
    )
    image_size: int = Field(
        32, ge=8, description="Width and height, in pixels, of the images that are modelled"
    )
    codebook: int = Field(256, ge=2, le=65_536, description="Number of codes of the autoencoder")
    code_channels: int = Field(8, ge=1, description="Numbers in a code")
    vq_channels: list[int] = Field(
        default=[32, 64, 64],
        min_length=1,
        description="Channels of the autoencoder at each resolution; each but the last halves it",
    )
    vq_blocks: int = Field(
        1, ge=1, description="Residual blocks of the autoencoder at each resolution"
    )
    vq_steps: int = Field(1000, ge=1, description="Optimiser steps of the autoencoder")
    vq_batch: int = Field(64, ge=1, description="Images in a forward pass of the autoencoder")
    vq_accumulate: int = Field(
        1, ge=1, description="Forward passes in an optimiser step of the autoencoder"
    )
    vq_rate: float = Field(1e-3, gt=0, description="Highest learning rate of the autoencoder")
    vq_weights: str = Field(
        "laion-assets-tiny-vq",
        description="Folder of a trained VQModel (diffusers) to use, as the paper used a VQGAN, or"
        " laion-assets-tiny-vq, the shipped one; empty: one is trained first",
    )
    text_tokens: int = Field(
        16, ge=3, description="Tokens of a caption, start and end included; longer ones are cut"
    )
    width: int = Field(128, ge=8, description="Width of the transformer")
    layers: int = Field(4, ge=1, description="Layers of the transformer")
    heads: int = Field(4, ge=1, description="Attention heads of the transformer")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout of the transformer")
    text_weight: float = Field(
        0.125, ge=0, description="Weight of the text's loss relative to the image's (DALL-E's: 1/8)"
    )
    caption_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the captions that are dropped in training; guidance needs some",
    )
    steps: int = Field(800, ge=1, description="Optimiser steps of the transformer")
    batch: int = Field(64, ge=1, description="Pairs in a forward pass of the transformer")
    accumulate: int = Field(
        1, ge=1, description="Forward passes in an optimiser step of the transformer"
    )
    rate: float = Field(1e-3, gt=0, description="Highest learning rate of the transformer")
    evaluate_every: int = Field(
        100, ge=1, description="Steps between two measurements of the held-out loss"
    )
    evaluate_pairs: int = Field(
        512, ge=1, description="Largest number of held-out pairs that a loss is measured on"
    )
    subset_shares: list[float] = Field(
        default=[0.05, 0.25],
        description="Shares of the training pairs to train further transformers on, for comparison",
    )
    control: bool = Field(
        True, description="Train a control transformer, on the same pairs with captions shuffled"
    )

    captions: list[str] = Field(
        default=[], description="Captions to draw, in addition to those from the held-out pairs"
    )
    held_out_captions: int = Field(
        12, ge=1, description="Number of captions taken from the held-out pairs"
    )
    samples: int = Field(128, ge=1, description="Pictures drawn per caption")
    sample_batch: int = Field(128, ge=1, description="Pictures drawn at once")
    best: int = Field(8, ge=1, description="Number of pictures, ranked highest by CLIP, to show")
    guidance: float = Field(
        2.0,
        ge=1,
        allow_inf_nan=False,
        description="Scale of what the caption changes in the codes' scores when samples are drawn"
        " (classifier-free guidance); 1: as it was learnt",
    )
    guidance_compared: list[Annotated[float, Field(ge=1, allow_inf_nan=False)]] = Field(
        default=[1.0, 2.0, 4.0],
        description="Scales of guidance to compare on a few samples of each caption",
    )
    guidance_samples: int = Field(
        16, ge=1, description="Pictures drawn per caption and scale that is compared"
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature")
    top_k: int = Field(0, ge=0, description="Sample from the k likeliest codes; 0: from all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest codes of this probability mass"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset", cls.model_fields["preset"].default)
        if name not in shipped_presets():
            known = ", ".join(shipped_presets())
            raise ValueError(f"unknown preset {name!r}: the presets are {known}")
        preset: dict[str, Any] = json.loads((PRESETS / f"{name}.json").read_bytes())
        preset.pop("about")
        return {**preset, **values}

    @model_validator(mode="after")
    def _fits(self) -> GenerationOptions:
        if self.image_size % self.shrink:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.shrink}, by which"
                f" {len(self.vq_channels)} vq_channels shrink an image"
            )
        if min(self.vq_channels) < _LEAST_CHANNELS:
            raise ValueError(f"vq_channels must be at least {_LEAST_CHANNELS}")
        if any(channels % self.vq_norm_groups for channels in self.vq_channels):
            raise ValueError(
                f"vq_channels must be multiples of {self.vq_norm_groups}, the number of groups in"
                " which they are normalised (a quarter of the first of them, 32 at most)"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.best > self.samples:
            raise ValueError(f"best {self.best} is more than samples {self.samples}")
        if not all(0 < share < 1 for share in self.subset_shares):
            raise ValueError("subset_shares must be above 0 and below 1")
        scales = {"guidance": self.guidance}
        scales["guidance_compared"] = max(self.guidance_compared, default=1)
        above = " and ".join(name for name, scale in scales.items() if scale > 1)
        if above and not self.caption_dropout:
            raise ValueError(
                f"{above} above 1 needs a model that was trained without captions, too: set"
                " caption_dropout, or no scale but 1"
            )
        return self

    @property
    def shrink(self) -> int:
        """Side length, in pixels, of the square that one code stands for."""
        return int(2 ** (len(self.vq_channels) - 1))

    @property
    def vq_norm_groups(self) -> int:
        """Number of groups in which channels are normalised."""
        return min(32, self.vq_channels[0] // _LEAST_CHANNELS)

    @property
    def side(self) -> int:
        """Number of codes along a side of an image."""
        return self.image_size // self.shrink

    @property
    def image_tokens(self) -> int:
        """Number of codes of an image."""
        return self.side**2
