"""The pairs that a subset kept, streamed from the webdataset shards they are stored in."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from laion_assets.clip.shards import IMAGE_FORMATS, NOT_AN_IMAGE
from laion_assets.download.tars import ImageBytes
from laion_assets.filtering.parts import part_numbers, part_path

SHARDS_OPEN: Final = 16
"""So many shards are shuffled together: more would be read at random all over the disk."""
_BATCHES_AHEAD: Final = 2
_TRIED: Final = 64


class NoPairsError(ValueError):
    """There is too little to train on; the message says what there is."""


class LostImageError(ValueError):
    """A shard has no image, or no readable one, for a pair that the subset kept."""


class OtherImageError(ValueError):
    """A shard has another image under a kept pair's key: keys are places, and shards that were made
    again after the subset have others' images there."""


@dataclass(frozen=True)
class Shard:
    """A part of a subset and the tar that has its images."""

    part: Path
    tar: Path
    version: str = ""
    """Of the images, if it is known; else the tar's size and time stand for it."""

    def keys(self) -> list[str]:
        return self._column("key")

    def state(self) -> str:
        """Other images have another one."""
        if self.version or not self.tar.exists():
            return self.version
        stat = self.tar.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def captions(self) -> list[str]:
        return self._column("TEXT")

    def _column(self, name: str) -> list[str]:
        with pq.ParquetFile(self.part) as file:
            values: list[str] = file.read([name])[name].to_pylist()
        return values


def find_shards(subset: Path, images: Path, version: str = "") -> list[Shard]:
    """The shards of one segment's subset that kept anything, in order; ``version``: of the images,
    if it is known."""
    return [
        Shard(part_path(subset, number), images / f"{number:05d}.tar", version)
        for number in part_numbers(subset)
        if pq.read_metadata(part_path(subset, number)).num_rows
    ]


class Pairs:
    """All pairs by number, 0 to n - 1, in the order of the shards and their rows.

    A caption belongs to the training or to the held-out pairs as a whole, by a hash of its text
    and the seed: no training sees a held-out caption, whichever shards there are.
    """

    def __init__(self, shards: Sequence[Shard], held_out_share: float, seed: int) -> None:
        """Raises :class:`NoPairsError` if the training or the held-out pairs are none."""
        self.shards = list(shards)
        self._seed = seed
        texts, sizes, digest = [np.empty(0, np.uint64)], [], hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            captions = shard.captions()
            sizes.append(len(captions))
            digest.update(json.dumps([shard.keys(), captions, shard.state()]).encode())
            texts.append(np.array([_text(caption, seed) for caption in captions], np.uint64))
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.digest = digest.hexdigest()
        """Of the pairs in their order: keys, captions, and which images these are of."""
        self.texts: NDArray[np.uint64] = np.concatenate(texts)
        """A digest of each pair's caption: equal ones have the same caption."""
        flags = self.texts / 2**64 < held_out_share
        self.training: NDArray[np.int64] = np.flatnonzero(~flags).astype(np.int64)
        self.held_out: NDArray[np.int64] = np.flatnonzero(flags).astype(np.int64)
        if not len(self.training) or not len(self.held_out):
            raise NoPairsError(_too_few(self.texts, len(self.held_out), held_out_share))

    def text(self, caption: str) -> np.uint64:
        """The digest that ``texts`` has for a caption."""
        return np.uint64(_text(caption, self._seed))

    def trains_on(self, caption: str) -> bool:
        """Whether a training pair has this caption."""
        return bool((self.texts[self.training] == self.text(caption)).any())

    def __len__(self) -> int:
        return int(self._ends[-1])

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards of pairs and their rows there, int64 (n,) each."""
        shards = np.searchsorted(self._ends, numbers, side="right").astype(np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), self._ends])
        return shards, numbers - starts[shards]

    def place(self, number: int) -> tuple[int, int]:
        """The shard of a pair and its row there."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - self.first(shard)

    def first(self, shard: int) -> int:
        """The number of a shard's first pair."""
        return int(self._ends[shard - 1]) if shard else 0

    def in_order(self, shard: int) -> NDArray[np.int64]:
        return np.arange(self.first(shard), self._ends[shard], dtype=np.int64)

    def epoch(self, number: int, seed: int) -> NDArray[np.int64]:
        """The training pairs in the order of an epoch: shards in a random order, a few of them
        shuffled together at a time."""
        rng = np.random.default_rng([seed, number])
        shards = rng.permutation(len(self.shards))
        bounds = np.searchsorted(self.training, [self.first(at) for at in range(len(shards) + 1)])
        ordered = []
        for start in range(0, len(shards), SHARDS_OPEN):
            some = shards[start : start + SHARDS_OPEN]
            together = np.concatenate(
                [self.training[bounds[shard] : bounds[shard + 1]] for shard in some]
            )
            ordered.append(rng.permutation(together))
        return np.concatenate(ordered)


def _too_few(texts: NDArray[np.uint64], held_out: int, share: float) -> str:
    if not len(texts):
        return "the subset kept no pairs: there is nothing to train on"
    return (
        f"{len(texts):,} pairs with {len(np.unique(texts)):,} captions were kept, and of these"
        f" {held_out:,} pairs are held out (held_out_share {share:g}, by caption): training needs"
        " some, and so does what is held out; take a larger subset or another share"
    )


def _text(caption: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{caption}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def with_other_captions(pairs: Pairs, numbers: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For each pair another one whose caption is another text: controls are none if some captions
    happen to be right.

    Each neighbour's, where that will do; then pairs change places at random. So all captions are
    said as often as before, unless one is said so often that it cannot be. Raises
    :class:`NoPairsError` if all captions are the same.
    """
    texts = pairs.texts[numbers]
    order = np.argsort(texts, kind="stable")
    first, last = (np.searchsorted(texts, texts, side, order) for side in ("left", "right"))
    if not len(texts) or last[0] - first[0] == len(texts):
        raise NoPairsError(
            f"a control needs pairs of two captions at least, and these {len(texts):,} have one"
        )
    rng = np.random.default_rng(seed)
    rows = np.roll(np.arange(len(texts)), 1)
    for row in np.flatnonzero(texts[rows] == texts):
        if texts[rows[row]] != texts[row]:
            continue  # it was changed with an earlier one
        tried = rng.integers(len(texts), size=_TRIED)
        fits = (texts[rows[tried]] != texts[row]) & (texts[tried] != texts[rows[row]])
        if fits.any():
            other = tried[fits.argmax()]
            rows[[row, other]] = rows[[other, row]]
        else:
            # Any that has another caption: those are all but a run of the sorted ones.
            place = rng.integers(len(texts) - (last[row] - first[row]))
            rows[row] = order[place if place < first[row] else place + last[row] - first[row]]
    return numbers[rows]


class Images(AbstractContextManager["Images"]):
    """The pairs' images at the size that is modelled; keeps a few shards open."""

    def __init__(self, pairs: Pairs, size: int, threads: int) -> None:
        self._pairs, self._size = pairs, size
        self._open: OrderedDict[int, tuple[ImageBytes, list[str]]] = OrderedDict()
        self._pool = ThreadPoolExecutor(threads)

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for tar, _keys in self._open.values():
            tar.close()

    def encoded(self, number: int) -> bytes:
        """The bytes in the shard. Raises :class:`LostImageError`, :class:`OtherImageError`."""
        try:
            return self._read(number)
        except (OSError, pa.ArrowException) as error:
            raise self._lost(number, error) from error

    def stored(self, number: int) -> NDArray[np.uint8]:
        """The image as it is stored, uint8 (height, width, 3). Raises :class:`LostImageError`."""
        encoded = self.encoded(number)
        try:
            with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
                return np.asarray(image.convert("RGB"))
        except NOT_AN_IMAGE as error:
            raise self._lost(number, error) from error

    def _read(self, number: int) -> bytes:
        shard, row = self._pairs.place(number)
        if shard not in self._open:
            if len(self._open) > SHARDS_OPEN:
                self._open.popitem(last=False)[1][0].close()
            self._open[shard] = _opened(self._pairs.shards[shard])
        self._open.move_to_end(shard)
        tar, keys = self._open[shard]
        return tar.read(keys[row])

    def pixels(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (n, size, size, 3). Raises :class:`LostImageError`."""
        return self._wait(numbers, self._start(numbers))

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """The pixels of each batch, decoded ahead of whoever takes them."""
        waiting: deque[tuple[NDArray[np.int64], list[Future[NDArray[np.uint8]]]]] = deque()
        for numbers in batches:
            waiting.append((numbers, self._start(numbers)))
            if len(waiting) > _BATCHES_AHEAD:
                yield self._wait(*waiting.popleft())
        while waiting:
            yield self._wait(*waiting.popleft())

    def in_turn(
        self, order: Callable[[int], NDArray[np.int64]]
    ) -> Callable[[int], NDArray[np.uint8]]:
        """The pixels of batches by their number, decoded ahead if they are asked for in turn."""
        stream: Iterator[NDArray[np.uint8]] = iter(())
        expected = -1

        def batch_of(number: int) -> NDArray[np.uint8]:
            nonlocal stream, expected
            if number != expected:
                stream = self.batches(order(at) for at in itertools.count(number))
            expected = number + 1
            return next(stream)

        return batch_of

    def _start(self, numbers: NDArray[np.int64]) -> list[Future[NDArray[np.uint8]]]:
        return [
            self._pool.submit(shrunk, self.encoded(int(number)), self._size) for number in numbers
        ]

    def _wait(
        self, numbers: NDArray[np.int64], started: list[Future[NDArray[np.uint8]]]
    ) -> NDArray[np.uint8]:
        made = []
        for number, future in zip(numbers, started, strict=True):
            try:
                made.append(future.result())
            except NOT_AN_IMAGE as error:
                raise self._lost(int(number), error) from error
        return np.stack(made)

    def _lost(self, number: int, error: Exception) -> LostImageError:
        shard, row = self._pairs.place(number)
        of = self._pairs.shards[shard]
        return LostImageError(
            f"{of.tar} has no readable image {of.keys()[row]} ({error}), which {of.part} says was"
            " kept: make filtered_subset of this segment again, and what lies between image_shards"
            " and it; if the tar is damaged, image_shards first"
        )


def _opened(shard: Shard) -> tuple[ImageBytes, list[str]]:
    """The tar and the keys of the kept pairs. Raises :class:`OtherImageError`."""
    with pq.ParquetFile(shard.part) as file:
        kept = file.read(["key", "sha256"])
    rows = shard.tar.with_suffix(".parquet")
    with pq.ParquetFile(rows) as file:
        there = file.read(["key", "sha256"])
    sha256_of = dict(zip(there["key"].to_pylist(), there["sha256"].to_pylist(), strict=True))
    keys: list[str] = kept["key"].to_pylist()
    for key, sha256 in zip(keys, kept["sha256"].to_pylist(), strict=True):
        if sha256_of.get(key) != sha256:
            raise OtherImageError(
                f"{rows} has another image {key} than {shard.part} speaks of: image_shards were"
                " made again since; make filtered_subset of this segment again, and what lies"
                " between them"
            )
    return ImageBytes(shard.tar), keys


def shrunk(encoded: bytes, size: int) -> NDArray[np.uint8]:
    """An image at ``size`` by ``size``: the largest square in the middle, shrunk."""
    with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
        # A JPEG is decoded at an eighth, a quarter or half of its size where that is enough.
        image.draft("RGB", (size, size))
        whole = image.convert("RGB")
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(whole.resize((size, size), Image.Resampling.BOX, box))


class BatchOrder:
    """The numbers in each batch, epoch after epoch without end, by the batch's own number."""

    def __init__(self, length: int, size: int, epoch: Callable[[int], NDArray[np.int64]]) -> None:
        """``epoch``: the order of an epoch, (length,), by its number."""
        self._length, self._size = length, size
        self._epoch = lru_cache(maxsize=2)(epoch)

    def __call__(self, batch: int) -> NDArray[np.int64]:
        places = np.arange(batch * self._size, (batch + 1) * self._size)
        epochs, offsets = places // self._length, places % self._length
        return np.concatenate(
            [self._epoch(epoch)[offsets[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
        )


def captions_of(pairs: Pairs, numbers: NDArray[np.int64]) -> list[str]:
    """The captions of pairs, in the order asked for; one shard's are in memory at a time."""
    shards, rows = pairs.places(numbers)
    found = [""] * len(numbers)
    for shard in np.unique(shards):
        captions = pairs.shards[shard].captions()
        for at in np.flatnonzero(shards == shard):
            found[at] = captions[rows[at]]
    return found
