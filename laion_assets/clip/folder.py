"""Folders that hold a model in open_clip's layout: `open_clip_config.json` and its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

CONFIG: Final = "open_clip_config.json"
SUFFIXES: Final = (".safetensors", ".bin", ".pth")
"""Suffixes of the files that open_clip takes for weights."""
_BESIDE: Final = (".json", ".txt")
"""Suffixes of what else decides the vectors: configuration and tokenizer."""


def model_files(folder: Path) -> list[Path]:
    """The files that make the model what it is, sorted; none if there is no such folder."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.suffix in (*SUFFIXES, *_BESIDE) and path.is_file()]


def problem_of(folder: Path) -> str:
    """Why open_clip cannot load a model from the folder; empty if nothing obvious is wrong."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        return f"it has no {CONFIG}"
    except (OSError, ValueError) as error:
        return f"{CONFIG} cannot be read: {error}"
    if not isinstance(config, dict) or "model_cfg" not in config:
        return f"{CONFIG} has no `model_cfg`"
    if not any(path.suffix in SUFFIXES for path in model_files(folder)):
        return f"it has no weights ({', '.join(f'*{suffix}' for suffix in SUFFIXES)})"
    return ""
