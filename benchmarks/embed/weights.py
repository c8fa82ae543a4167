"""Random weights of the paper's architecture, in a file that both contestants load."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL: Final = "ViT-B-32"


def save_weights(path: Path, seed: int = 0) -> None:
    """Write open_clip's seeded initial weights; speed does not depend on their values."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    state = open_clip.create_model(MODEL).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
