"""Imports of the server from which the processes of ``decoders`` are forked."""

from __future__ import annotations

import sys
from typing import Any

# webdataset imports torch if it is installed, for loaders that are not used here: without it, each
# process takes a quarter of the memory and half the time to start.
_modules: dict[str, Any] = sys.modules
_modules.setdefault("torch", None)

import cv2  # noqa: E402, F401
import exifread  # type: ignore[import-untyped]  # noqa: E402, F401

from laion_assets.download import decoders, img2dataset_parts, shards  # noqa: E402, F401

img2dataset_parts.load()
# A caller's own main file, which each process runs once more, may import it.
if _modules["torch"] is None:
    del _modules["torch"]
