"""The CLIP model as a resource; torch is imported when a model is first asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from laion_assets.clip.identity import files_identity
from laion_assets.clip.options import ClipOptions
from resources.options import OptionsResource

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel


@lru_cache(maxsize=1)
def _load(options: ClipOptions, _files: str) -> ClipModel:
    from laion_assets.clip.model import load_clip

    return load_clip(options)


class ClipModelResource(ClipOptions, OptionsResource[ClipOptions]):
    """One open_clip model, loaded once per process as long as its files are the same."""

    def load(self) -> ClipModel:
        options = self.options()
        return _load(options, files_identity(options))
