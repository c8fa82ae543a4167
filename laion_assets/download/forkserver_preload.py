"""Imports of the server from which the processes of ``decoders`` are forked."""

from __future__ import annotations

import sys
from types import ModuleType

from laion_assets.download import img2dataset_parts

# webdataset imports torch if it is installed, for loaders that are not used here: without it, each
# process takes a quarter of the memory and half the time to start. Neither img2dataset's wandb,
# which reports to a server, nor its distributor's ray is wanted.
sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
sys.modules.setdefault("ray", None)  # type: ignore[arg-type]
sys.modules.setdefault("wandb", ModuleType("wandb"))
img2dataset_parts.load()
