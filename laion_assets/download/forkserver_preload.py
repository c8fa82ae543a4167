"""Imports of the server from which the processes of ``decoders`` are forked."""

from __future__ import annotations

import sys

# webdataset imports torch if it is installed, for loaders that are not used here: without it, each
# process takes a quarter of the memory and half the time to start.
sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

import cv2  # noqa: E402, F401
import exifread  # type: ignore[import-untyped]  # noqa: E402, F401

from laion_assets.download import decoders, img2dataset_parts, shards  # noqa: E402, F401

img2dataset_parts.load()
