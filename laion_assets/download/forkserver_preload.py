"""What the pool's processes are forked from: imported once, by the server of ``decoders``."""

from __future__ import annotations

import sys
from types import ModuleType

from laion_assets.download import img2dataset_parts

# webdataset imports torch where there is one, for loaders that are not used here: without it each
# process takes a quarter of the memory and half the time to start. Nor is img2dataset's wandb
# wanted, which reports, nor the ray of its distributor, where that is installed.
sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
sys.modules.setdefault("ray", None)  # type: ignore[arg-type]
sys.modules.setdefault("wandb", ModuleType("wandb"))
img2dataset_parts.load()
