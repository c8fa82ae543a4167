"""A lake of many simulated segments, and what one more of them costs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from laion_assets.dedup.claims import claiming_keys
from laion_assets.dedup.ledger import unsettled
from laion_assets.dedup.state import load, save
from laion_assets.lake import LocalLake
from laion_assets.layout import CLUSTER_LEDGER, NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.keys import CHOICES
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.segment import claims_held, write_segment
from laion_assets.near_duplicates.signature import LOOKS, SIGNATURE, Signatures
from laion_assets.near_duplicates.signatures import SIGNATURES

CLAIMS: Final = LOOKS * CHOICES + 1
"""Claims of an image that is the first of its cluster."""
_REAL: Final = tuple(SegmentKey("CC-MAIN-2024-10", f"{number:02d}") for number in range(3))
_NEW: Final = SegmentKey("CC-MAIN-2024-10", "99")
_COPIES: Final = 10
"""One of so many images of the new segment is a copy."""


class Growing:
    """A lake whose ledger holds random claims, and a few segments with signatures."""

    def __init__(self, root: Path, images: int) -> None:
        self.lake = LocalLake.at(root)
        self.ledger = root / CLUSTER_LEDGER
        self.partitions = root / NEAR_DUPLICATES
        self._chance = np.random.default_rng(1)
        self._n = images
        self._held = [self._images() for _ in _REAL]
        self._new = self._images()
        for number, row in enumerate(range(0, images, _COPIES)):
            looks = self._held[number % len(_REAL)]["looks"][row]
            noise = self._chance.integers(-2, 3, looks.shape)
            self._new["looks"][row] = np.clip(looks + noise, -127, 127)
        self.bytes, self.foreign = 0, 0
        self.cpu: list[float] = []
        self.seconds: list[float] = []

    def _images(self) -> Signatures:
        images = np.zeros(self._n, SIGNATURE)
        shape = images["looks"].shape
        images["looks"] = np.clip(self._chance.normal(0, 40, shape), -127, 127)
        images["sha256"] = self._chance.integers(0, 256, (self._n, 16))
        images["sketch"] = 1
        return images

    def add_real(self) -> None:
        """Claim the segments that the new one has copies of."""
        for key, images in zip(_REAL, self._held, strict=True):
            self._make(key, images)
        self.bytes = sum(path.stat().st_size for path in self.ledger.iterdir())
        self._state = load(self.ledger)

    def measure(self) -> float:
        """Make the new segment, as if it had never been made; return the CPU seconds."""
        shutil.rmtree(self.partitions / _NEW.hive, ignore_errors=True)
        save(self.ledger, self._state)
        cpu, since = time.process_time(), time.perf_counter()
        self.foreign = self._make(_NEW, self._new)
        self.cpu.append(time.process_time() - cpu)
        self.seconds.append(time.perf_counter() - since)
        return self.cpu[-1]

    def _make(self, key: SegmentKey, images: Signatures) -> int:
        n = len(images)
        rows = pa.table(
            {
                "SAMPLE_ID": pa.array(np.arange(n)),
                "width": pa.array(np.full(n, 640, np.int32)),
                "height": pa.array(np.full(n, 480, np.int32)),
            }
        )
        opener = self.lake.opener()
        with (
            self.lake.lease(CLUSTER_LEDGER, NEAR_DUPLICATES, unsettled) as lease,
            claiming_keys(lease.folder, lease.partitions, key, claims_held) as claims,
            self.lake.publish(NEAR_DUPLICATES, key, inputs={}, code_version="1") as staging,
        ):
            found = write_segment(
                rows,
                images,
                claims,
                lambda key: opener(NEAR_DUPLICATES, key, SIGNATURES),
                staging.path,
                NearDuplicateOptions(),
            )
        return found.foreign
