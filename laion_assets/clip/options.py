"""Options of the CLIP model: which one a deployment embeds with, and how it is run."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from laion_assets.options import OPERATIONAL, Options

HUB: Final = "hf-hub:"
LOCAL: Final = "local-dir:"
BRING_THEIR_OWN_WEIGHTS: Final = (HUB, LOCAL)
"""Beginnings of model names that stand for an architecture and its weights in one."""


class ClipOptions(Options):
    """An open_clip model and how it is run. The default is the paper's model (arXiv 2111.02114)."""

    model: str = Field(
        "ViT-B-32",
        min_length=1,
        description="An open_clip architecture, `hf-hub:ORG/REPO`, or `local-dir:FOLDER` holding"
        " open_clip_config.json and the weights",
    )
    pretrained: str = Field(
        "openai",
        description="Weights: an open_clip tag, a model shipped with the package, or a file."
        " Unused with hf-hub: and local-dir:, which bring their own",
    )
    weights: Annotated[str | None, OPERATIONAL] = Field(
        None,
        description="File with the weights that `pretrained` names, if they cannot be fetched",
    )
    cache_dir: Annotated[str | None, OPERATIONAL] = Field(
        None, description="Folder for fetched weights; null takes the fetching library's default"
    )
    device: Annotated[str, OPERATIONAL] = Field(
        "auto", description="Device: cpu, cuda, cuda:1 …; auto takes an accelerator if there is one"
    )
    precision: str = Field(
        "auto",
        pattern="^(auto|fp32|bf16|fp16)$",
        description="fp32, bf16 or fp16; auto is fp16 on CUDA and fp32 elsewhere. On a CPU bf16"
        " converts the weights, where the CPU has AMX or AVX512-BF16; on any other CPU nothing is"
        " embedded with it, and queries are in fp32",
    )
    batch_size: Annotated[int, OPERATIONAL] = Field(
        64,
        ge=1,
        description="Number of images in a batch; a CPU's core encodes at most eight at once",
    )
    decode_threads: Annotated[int | None, OPERATIONAL] = Field(
        None, ge=1, description="Number of threads that decode images; null takes one per core"
    )
    compile: Annotated[bool, OPERATIONAL] = Field(
        False,
        description="Compile the image tower (torch.compile): faster on a GPU after about a minute,"
        " needs a C compiler",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_unused_weights(cls, values: Any) -> Any:
        """Forget a `pretrained` that is unused, or records would name weights that were not."""
        if isinstance(values, dict) and str(values.get("model", "")).startswith(
            BRING_THEIR_OWN_WEIGHTS
        ):
            return {**values, "pretrained": ""}
        return values

    @property
    def key(self) -> str:
        """Name of the model, `MODEL/PRETRAINED`, in the table of thresholds and in metadata."""
        return f"{self.model}/{self.pretrained}" if self.pretrained else self.model


def public_key(key: str) -> str:
    """A model's key as it may be published: a folder or file of weights by its name alone.

    Its path could tell whose machine it is on; `model_version` identifies the weights.
    """
    if key.startswith(HUB):
        return key
    if key.startswith(LOCAL):
        return f"{LOCAL}{file_name(key.removeprefix(LOCAL))}"
    model, slash, pretrained = key.partition("/")
    return f"{model}{slash}{file_name(pretrained)}"


def file_name(path: str) -> str:
    """The part of a path after its last slash or backslash."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
