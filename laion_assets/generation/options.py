"""How the generation demo is trained and sampled; presets from minutes on a CPU to the paper's."""

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
    return sorted(path.stem for path in PRESETS.glob("*.json"))


class GenerationOptions(Options):
    """A discrete autoencoder, an autoregressive transformer over text and image tokens, and what
    is drawn with them. Fields that are not given are the preset's."""

    preset: str = Field(
        "demo", description="demo (32 pixels, minutes on 2 cores) or paper (256 pixels, one GPU)"
    )
    seed: int = Field(0, ge=0, description="Of the split, the order, the weights and the samples")
    device: Annotated[str, OPERATIONAL] = Field(
        "auto", description="As in [clip]: cpu, cuda, cuda:1 …"
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
        100, ge=1, description="Steps after which a killed training goes on"
    )

    held_out_share: float = Field(
        0.05, gt=0, lt=1, description="Share of the captions that no training sees"
    )
    image_size: int = Field(32, ge=8, description="Pixels a side that are modelled")
    codebook: int = Field(256, ge=2, le=65_536, description="Codes of the autoencoder")
    code_channels: int = Field(8, ge=1, description="Numbers in a code")
    vq_channels: list[int] = Field(
        default=[32, 64, 64],
        min_length=1,
        description="Channels at each resolution; each but the last halves it",
    )
    vq_blocks: int = Field(1, ge=1, description="Residual blocks at each resolution")
    vq_steps: int = Field(1000, ge=1, description="Optimiser steps of the autoencoder")
    vq_batch: int = Field(64, ge=1, description="Images in a forward pass")
    vq_accumulate: int = Field(1, ge=1, description="Forward passes in an optimiser step")
    vq_rate: float = Field(1e-3, gt=0, description="Highest learning rate of the autoencoder")
    vq_weights: str | None = Field(
        None,
        description="A folder of diffusers' VQModel to take instead of training one, as the paper"
        " took a VQGAN",
    )
    text_tokens: int = Field(16, ge=3, description="Tokens of a caption that are seen")
    width: int = Field(128, ge=8, description="Of the transformer")
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    text_weight: float = Field(
        0.125, ge=0, description="Of the text's loss beside the image's (1/8 is DALL-E's)"
    )
    steps: int = Field(800, ge=1, description="Optimiser steps of the transformer")
    batch: int = Field(64, ge=1, description="Pairs in a forward pass")
    accumulate: int = Field(1, ge=1, description="Forward passes in an optimiser step")
    rate: float = Field(1e-3, gt=0, description="Highest learning rate of the transformer")
    evaluate_every: int = Field(100, ge=1, description="Steps between two held-out losses")
    evaluate_pairs: int = Field(512, ge=1, description="Most held-out pairs in a loss")
    subset_shares: list[float] = Field(
        default=[0.05, 0.25],
        description="Shares of the training pairs that are trained on beside all of them",
    )
    control: bool = Field(True, description="Train once more, with the captions shuffled")

    captions: list[str] = Field(
        default=[], description="Captions to draw beside those taken from the held-out pairs"
    )
    held_out_captions: int = Field(12, ge=1, description="Captions taken from the held-out pairs")
    samples: int = Field(128, ge=1, description="Pictures drawn for a caption")
    sample_batch: int = Field(128, ge=1, description="Of these, how many are drawn at once")
    best: int = Field(8, ge=1, description="Of these, the pictures that CLIP ranks highest")
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(0, ge=0, description="Draw from the k likeliest codes; 0 from all")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the likeliest codes of this mass")

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset", cls.model_fields["preset"].default)
        if name not in shipped_presets():
            raise ValueError(f"no preset {name!r}; there are {', '.join(shipped_presets())}")
        preset: dict[str, Any] = json.loads((PRESETS / f"{name}.json").read_bytes())
        preset.pop("about")
        return {**preset, **values}

    @model_validator(mode="after")
    def _fits(self) -> GenerationOptions:
        if self.image_size % self.shrink:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of {self.shrink}, by which"
                f" {len(self.vq_channels)} vq_channels shrink it"
            )
        if min(self.vq_channels) < _LEAST_CHANNELS:
            raise ValueError(f"vq_channels are {_LEAST_CHANNELS} at least")
        if any(channels % self.vq_norm_groups for channels in self.vq_channels):
            raise ValueError(
                f"vq_channels are normalised in {self.vq_norm_groups} groups, by the first of them:"
                " they are multiples of it"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.best > self.samples:
            raise ValueError(f"the best {self.best} of {self.samples} samples")
        if not all(0 < share < 1 for share in self.subset_shares):
            raise ValueError("subset_shares are above 0 and below 1")
        return self

    @property
    def shrink(self) -> int:
        """Pixels a side that one code stands for."""
        return int(2 ** (len(self.vq_channels) - 1))

    @property
    def vq_norm_groups(self) -> int:
        """Groups of channels that are normalised together."""
        return min(32, self.vq_channels[0] // _LEAST_CHANNELS)

    @property
    def side(self) -> int:
        """Codes a side of an image."""
        return self.image_size // self.shrink

    @property
    def image_tokens(self) -> int:
        return self.side**2
