"""The CLIP model as a resource; torch is imported when a model is first asked for."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import dagster as dg

from laion_assets.clip.options import ClipOptions

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel


@lru_cache(maxsize=1)
def _load(options_json: str) -> ClipModel:
    from laion_assets.clip.model import load_clip

    return load_clip(ClipOptions.model_validate_json(options_json))


class ClipModelResource(ClipOptions, dg.ConfigurableResource["ClipModel"]):
    """One open_clip model, loaded once per process."""

    def load(self) -> ClipModel:
        return _load(self.model_dump_json())
