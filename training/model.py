"""The shipped architecture in open_clip, taken apart for training on cached activations."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import nn

from .features import MEAN, STD
from .pretrained import tiny_vit_weights

NAME = "laion-assets-tiny"
PACKAGE = Path(__file__).resolve().parent.parent / "laion_assets" / "clip"
WEIGHTS = PACKAGE / "weights" / f"{NAME}.safetensors"

open_clip.add_model_config(PACKAGE / "model_configs")


def new_model(cache: Path) -> Any:
    """Create the model with the pretrained image tower and random other parts."""
    model = open_clip.create_model(NAME)
    model.visual.trunk.load_state_dict(tiny_vit_weights(cache))
    return model


def words_of_tokenizer() -> list[str]:
    """List whole words of ASCII letters among the tokenizer's tokens, most frequent first."""
    tokenizer = open_clip.get_tokenizer(NAME)
    ending = "</w>"
    tokens = [tokenizer.decoder[at] for at in sorted(tokenizer.decoder)]
    words = [token.removesuffix(ending) for token in tokens if token.endswith(ending)]
    return [word for word in words if len(word) > 2 and word.isascii() and word.isalpha()]


def image_tail(model: Any, trunk: torch.Tensor) -> torch.Tensor:
    """Unit embeddings (n, d) from the activations before the last stage, (n, 160, 14, 14)."""
    tower = model.visual.trunk
    pooled = tower.forward_head(tower.stages[3](trunk))
    return nn.functional.normalize(model.visual.head(pooled), dim=-1)


def encode_text(model: Any, ids: torch.Tensor, parts: int = 6) -> torch.Tensor:
    """Unit embeddings (n, d) of token ids (n, 77), as the model's own, but without the padding.

    Attention is causal, so nothing after a text's end matters: texts of similar length are encoded
    together, in ``parts`` parts, each cut to its longest text.
    """
    ends = ids.argmax(dim=1)
    order = ends.argsort()
    rows = [_encode_cut(model, ids[part], ends[part]) for part in order.chunk(parts)]
    return torch.cat(rows)[order.argsort()]


def _encode_cut(model: Any, ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    length = int(ends.max()) + 1
    x = model.token_embedding(ids[:, :length]) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(ids)), ends]) @ model.text_projection
    return nn.functional.normalize(x, dim=-1)


def shipped_state(model: Any) -> dict[str, torch.Tensor]:
    """State dict to ship: float16, for open_clip's default normalisation of pixels.

    A weights file cannot give open_clip the mean and deviation that it was trained with, so their
    difference from the default is folded into the first convolution.
    """
    model = copy.deepcopy(model).eval()
    ours_mean, ours_std = torch.tensor(MEAN), torch.tensor(STD)
    mean, std = torch.tensor(OPENAI_DATASET_MEAN), torch.tensor(OPENAI_DATASET_STD)
    first = model.visual.trunk.patch_embed.conv1
    with torch.no_grad():
        kernel = first.conv.weight
        shift = (kernel * ((mean - ours_mean) / ours_std)[None, :, None, None]).sum((1, 2, 3))
        first.bn.running_mean -= shift
        kernel *= (std / ours_std)[None, :, None, None]
    return {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
