"""The weights that a model name stands for, identified without loading them.

A tag of open_clip or of a hub names its weights for good. A file, or a model shipped with the
package, may change under the same name; its content is the identity.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from laion_assets.clip.model import WEIGHTS
from laion_assets.clip.options import ClipOptions
from laion_assets.files import sha256_file


def weights_identity(options: ClipOptions) -> str:
    """Digest of the weights file if there is one, else the model's name."""
    named = [Path(options.weights)] if options.weights else []
    named += [WEIGHTS / f"{options.pretrained}.safetensors", Path(options.pretrained)]
    for path in named:
        if path.is_file():
            return _digest(path, path.stat().st_mtime_ns, path.stat().st_size)
    return options.key


@cache
def _digest(path: Path, _changed: int, _size: int) -> str:
    return sha256_file(path)[:16]
