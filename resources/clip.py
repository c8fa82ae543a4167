"""The CLIP model as a resource; torch is imported when a model is first asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from laion_assets.clip.options import ClipOptions
from resources.options import OptionsResource

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel


@lru_cache(maxsize=1)
def _load(options: ClipOptions) -> ClipModel:
    from laion_assets.clip.model import load_clip

    return load_clip(options)


class ClipModelResource(ClipOptions, OptionsResource[ClipOptions]):
    """One open_clip model, loaded once per process."""

    def load(self) -> ClipModel:
        return _load(self.options())
