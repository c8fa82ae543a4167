"""A lake of many simulated segments, and what one more of them costs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.dedup.claims import claiming_keys
from laion_assets.dedup.ledger import unsettled
from laion_assets.dedup.runs import Columns, SortedRunWriter
from laion_assets.dedup.state import Owner, State, load, save
from laion_assets.dedup.upkeep import FAN
from laion_assets.files import ReadAt
from laion_assets.lake import LocalLake
from laion_assets.layout import CLUSTER_LEDGER, NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.keys import CHOICES, entries_of, key_of_signs
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.segment import claims_held, write_segment
from laion_assets.near_duplicates.signature import FREQUENCIES, LOOKS, SIGNATURE, Signatures
from laion_assets.near_duplicates.signatures import SIGNATURES, write_signatures

_CLAIMS: Final = LOOKS * CHOICES
"""Claims of an image that is the first of its cluster, but that of its bytes."""
_NEW: Final = SegmentKey("CC-MAIN-2024-10", "99")
_COPIES: Final = 10
"""One of so many images of the new segment is a copy, of any segment's."""


class _Counting:
    """A file of signatures that counts the bytes read from it."""

    def __init__(self, path: Path, growing: Growing) -> None:
        self._content, self._growing = path.read_bytes(), growing
        self.name, self.size = path.name, len(self._content)

    def read_at(self, offset: int, n: int) -> bytes:
        self._growing.read += n if n > 128 else 0
        return self._content[offset : offset + n]

    def close(self) -> None:
        pass


class Growing:
    """A lake whose ledger holds keys of random images, in a few of which the new segment has part.

    All segments share one file of signatures, so that a chance hit reads from it as it would from
    the segment's own.
    """

    def __init__(self, root: Path, images: int, segments: int) -> None:
        self.lake = LocalLake.at(root)
        self.ledger, self.partitions = root / CLUSTER_LEDGER, root / NEAR_DUPLICATES
        self._chance, self._n = np.random.default_rng(segments), images
        self._held, self._new = self._images(), self._images()
        self._held["cluster"] = 1 + np.arange(images)
        rows = np.arange(0, images, _COPIES)
        looks = self._held["looks"][rows]
        noise = self._chance.integers(-2, 3, looks.shape)
        self._new["looks"][rows] = np.clip(looks + noise, -127, 127)
        self.ledger.mkdir(parents=True)
        write_signatures(root, self._held)
        self._file = _Counting(root / SIGNATURES, self)
        self._make_ledger(segments, rows)
        self.bytes = sum(path.stat().st_size for path in self.ledger.iterdir())
        self._state = load(self.ledger)
        self.foreign = self.read = 0
        self.cpu: list[float] = []
        self.seconds: list[float] = []

    def _images(self) -> Signatures:
        images = np.zeros(self._n, SIGNATURE)
        shape = images["looks"].shape
        images["looks"] = np.clip(self._chance.normal(0, 40, shape), -127, 127)
        images["sha256"] = self._chance.integers(0, 256, (self._n, 16))
        images["sketch"] = 1
        return images

    def _make_ledger(self, segments: int, copied: NDArray[np.int64]) -> None:
        """As claims leave it: runs of 1, 8, 64 … segments."""
        state, at, level = State(next_number=segments), 0, 20
        owner_of = self._chance.integers(0, segments, self._n)
        while at < segments:
            while FAN**level > segments - at:
                level -= 1
            end = at + FAN**level
            rows = copied[(owner_of[copied] >= at) & (owner_of[copied] < end)]
            claims = self._claims((end - at) * self._n * _CLAIMS, (at, end), rows, owner_of)
            with SortedRunWriter(self.ledger, end - 1, level, len(claims.high)) as writer:
                writer.write(claims)
            state.runs.append(writer.run())
            for number in range(at, end):
                key = SegmentKey(f"CC-MAIN-2023-{number // 100:02d}", f"{number % 100:02d}")
                (self.partitions / key.hive).mkdir(parents=True)
                share = len(claims.high) // (end - at)
                rest = len(claims.high) % (end - at) if number == at else 0
                state.owners[str(key)] = Owner(number, share + rest)
            at = end
        save(self.ledger, state)

    def _claims(
        self,
        n: int,
        owners: tuple[int, int],
        copied: NDArray[np.int64],
        owner_of: NDArray[np.int64],
    ) -> Columns:
        """Claims of so many keys of random looks, and of the images that are copied."""
        signs = self._chance.integers(0, 1 << FREQUENCIES, n, np.uint64)
        high = key_of_signs(signs, self._chance.integers(0, CHOICES, n))
        low = self._chance.integers(0, 1 << 32, n, np.uint64) << np.uint64(32)
        low |= self._chance.integers(0, self._n, n, np.uint64)
        owner = self._chance.integers(*owners, n, np.uint32)
        entries = entries_of(self._held[copied], copied)
        sketches = entries.sketch.astype(np.uint64) << np.uint64(32)
        claims = Columns(
            np.concatenate([high, entries.key]),
            np.concatenate([low, sketches | entries.row.astype(np.uint64)]),
            np.concatenate([owner, owner_of[entries.row].astype(np.uint32)]),
        )
        return claims.take(np.argsort(claims.high))

    def measure(self) -> float:
        """Make the new segment, as if it had never been made; return the CPU seconds."""
        shutil.rmtree(self.partitions / _NEW.hive, ignore_errors=True)
        save(self.ledger, self._state)
        self.read = 0
        cpu, since = time.process_time(), time.perf_counter()
        self.foreign = self._make()
        self.cpu.append(time.process_time() - cpu)
        self.seconds.append(time.perf_counter() - since)
        return self.cpu[-1]

    def _make(self) -> int:
        n = self._n
        rows = pa.table(
            {
                "SAMPLE_ID": pa.array(np.arange(n)),
                "width": pa.array(np.full(n, 640, np.int32)),
                "height": pa.array(np.full(n, 480, np.int32)),
            }
        )

        def opener(_: SegmentKey) -> ReadAt:
            return self._file

        with (
            self.lake.lease(CLUSTER_LEDGER, NEAR_DUPLICATES, unsettled) as lease,
            claiming_keys(lease.folder, lease.partitions, _NEW, claims_held) as claims,
            self.lake.publish(NEAR_DUPLICATES, _NEW, inputs={}, code_version="1") as staging,
        ):
            options = NearDuplicateOptions()
            found = write_segment(rows, self._new, claims, opener, staging.path, options)
        return found.foreign
