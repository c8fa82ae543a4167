"""What the pool's processes are forked from: imported once, by the server of ``decoders``."""

from __future__ import annotations

import sys

from laion_assets.download import img2dataset_parts

# webdataset imports torch where there is one, for loaders that are not used here: without it each
# process takes a quarter of the memory and half the time to start.
sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
img2dataset_parts.load()
