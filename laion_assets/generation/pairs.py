"""The pairs that a subset kept, streamed from the webdataset shards that store them."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from cachetools import LRUCache
from numpy.typing import NDArray
from PIL import Image

from laion_assets.clip.shards import IMAGE_FORMATS, NOT_AN_IMAGE
from laion_assets.clip.vectors import has_texts
from laion_assets.download.shard_files import SHARD_DIGITS, read_shard, tar_path
from laion_assets.download.tars import ImageBytes
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS
from laion_assets.tables import read_parquet

SHARDS_OPEN: Final = 16
"""Number of shards that are shuffled together; more would mean random reads all over the disk."""
_BATCHES_AHEAD: Final = 2
_TRIED: Final = 64
"""Random partners tried before a pair's caption is replaced by any other caption."""


class NoPairsError(ValueError):
    """There are too few pairs to train on; the message says how many there are."""


class LostImageError(ValueError):
    """A shard has no image, or no readable one, for a pair that the subset kept."""


class OtherImageError(ValueError):
    """A shard has another image under a kept pair's key.

    Keys are places in a shard: shards that were rebuilt after the subset may hold other images
    there.
    """


@dataclass(frozen=True)
class Shard:
    """A tar, and the rows of a part of a subset whose images it holds: ``first`` up to ``stop``."""

    part: Path
    tar: Path
    first: int
    stop: int
    version: str = ""
    """Version of the images; if it is unknown (empty), the tar's size and time stand for it."""

    def keys(self) -> list[str]:
        """Keys of the kept pairs, in the part's order."""
        return self._column("key")

    def state(self) -> str:
        """Identity of the images: it changes whenever they do. Empty for a missing tar."""
        if self.version or not self.tar.exists():
            return self.version
        stat = self.tar.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def captions(self) -> list[str]:
        """Captions of the kept pairs, in the part's order."""
        return self._column("TEXT")

    def _column(self, name: str) -> list[str]:
        values: list[str] = self.read([name])[name].to_pylist()
        return values

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The named columns of the rows; only row groups with any of these are read."""
        about = pq.read_metadata(self.part)
        sizes = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
        ends = np.cumsum(sizes)
        starts = ends - sizes
        groups = np.flatnonzero((ends > self.first) & (starts < self.stop)).tolist()
        rows = read_parquet(self.part, columns, groups)
        return rows.slice(self.first - starts[groups[0]], self.stop - self.first)


def find_shards(subset: Path, images: Path, version: str = "") -> list[Shard]:
    """Shards of one segment's subset that kept anything, in order.

    A shard whose rows are in two parts comes twice. A subset of images without captions has no
    pairs. ``version`` is that of the images, if it is known.
    """
    found: list[Shard] = []
    if not has_texts(subset):
        return found
    for part in PARTITIONS[FILTERED_SUBSET].rows.paths(subset):
        keys = read_parquet(part, ["key"])["key"]
        # The key's first digits are the shard's name, as img2dataset makes keys.
        names = np.array(pc.utf8_slice_codeunits(keys, 0, SHARD_DIGITS), dtype=str)
        edges = np.flatnonzero(names[1:] != names[:-1]) + 1
        found += [
            Shard(part, tar_path(images, int(names[first])), first, stop, version)
            for first, stop in itertools.pairwise([0, *edges.tolist(), len(names)])
            if first < stop
        ]
    return found


class Pairs:
    """All pairs by number, 0 to n - 1, in the order of the shards and their rows.

    A hash of its text and the seed decides whether a caption, with all its pairs, is trained on or
    held out. No training sees a held-out caption, whichever shards are given.
    """

    def __init__(self, shards: Sequence[Shard], held_out_share: float, seed: int) -> None:
        """Raises :class:`NoPairsError` if no pairs are left to train on or to hold out."""
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
        """Digest of the pairs in their order: of their keys, captions and images' identity."""
        self.texts: NDArray[np.uint64] = np.concatenate(texts)
        """Digest of each pair's caption, (n,); equal digests mean equal captions."""
        flags = self.texts / 2**64 < held_out_share
        self.training: NDArray[np.int64] = np.flatnonzero(~flags).astype(np.int64)
        self.held_out: NDArray[np.int64] = np.flatnonzero(flags).astype(np.int64)
        if not len(self.training) or not len(self.held_out):
            raise NoPairsError(_too_few(self.texts, len(self.held_out), held_out_share))

    def text(self, caption: str) -> np.uint64:
        """Digest of a caption, as in ``texts``."""
        return np.uint64(_text(caption, self._seed))

    def trains_on(self, caption: str) -> bool:
        """Return whether a training pair has this caption."""
        return bool((self.texts[self.training] == self.text(caption)).any())

    def __len__(self) -> int:
        return int(self._ends[-1])

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards of pairs and their rows in them, int64 (n,) each."""
        shards = np.searchsorted(self._ends, numbers, side="right").astype(np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), self._ends])
        return shards, numbers - starts[shards]

    def place(self, number: int) -> tuple[int, int]:
        """Shard of a pair and its row in it."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - self.first(shard)

    def first(self, shard: int) -> int:
        """Number of a shard's first pair."""
        return int(self._ends[shard - 1]) if shard else 0

    def in_order(self, shard: int) -> NDArray[np.int64]:
        """Numbers of a shard's pairs, in the order of its rows."""
        return np.arange(self.first(shard), self._ends[shard], dtype=np.int64)

    def epoch(self, number: int, seed: int) -> NDArray[np.int64]:
        """Numbers of the training pairs in the order of an epoch.

        The shards come in a random order; the pairs of ``SHARDS_OPEN`` shards at a time are
        shuffled together.
        """
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
        f"the subset kept {len(texts):,} pairs with {len(np.unique(texts)):,} captions, of which"
        f" {held_out:,} pairs are held out (held_out_share {share:g}, by caption): there must be"
        " pairs both to train on and to hold out; use a larger subset or another share"
    )


def _text(caption: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{caption}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def with_other_captions(pairs: Pairs, numbers: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For each pair, the number of another pair whose caption is a different text.

    A control is worthless if some of its captions happen to be right. Each pair gets its
    neighbour's caption where that differs; the others swap partners at random. Every caption is
    thus used as often as before, unless it is too frequent for that. Raises
    :class:`NoPairsError` if all captions are the same.
    """
    texts = pairs.texts[numbers]
    order = np.argsort(texts, kind="stable")
    first, last = (np.searchsorted(texts, texts, side, order) for side in ("left", "right"))
    if not len(texts) or last[0] - first[0] == len(texts):
        raise NoPairsError(
            f"a control needs pairs with at least two captions, and these {len(texts):,} have one"
        )
    rng = np.random.default_rng(seed)
    rows = np.roll(np.arange(len(texts)), 1)
    for row in np.flatnonzero(texts[rows] == texts):
        if texts[rows[row]] != texts[row]:
            continue  # an earlier swap changed it already
        tried = rng.integers(len(texts), size=_TRIED)
        fits = (texts[rows[tried]] != texts[row]) & (texts[tried] != texts[rows[row]])
        if fits.any():
            other = tried[fits.argmax()]
            rows[[row, other]] = rows[[other, row]]
        else:
            # Any pair with another caption: all but one run of the sorted pairs.
            place = rng.integers(len(texts) - (last[row] - first[row]))
            rows[row] = order[place if place < first[row] else place + last[row] - first[row]]
    return numbers[rows]


class _OpenShards(LRUCache[int, tuple[ImageBytes, list[str]]]):
    """The shards read last, by number: the open tar, and the keys of its kept pairs.

    A tar that leaves is closed.
    """

    def popitem(self) -> tuple[int, tuple[ImageBytes, list[str]]]:
        shard, (tar, keys) = super().popitem()
        tar.close()
        return shard, (tar, keys)


class Images(AbstractContextManager["Images"]):
    """The pairs' images, decoded at the modelled size; a few shards stay open."""

    def __init__(self, pairs: Pairs, size: int, threads: int) -> None:
        self._pairs, self._size = pairs, size
        self._open = _OpenShards(maxsize=SHARDS_OPEN)
        self._pool = ThreadPoolExecutor(threads)

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        while self._open:
            self._open.popitem()

    def encoded(self, number: int) -> bytes:
        """Return an image's bytes as its shard has them.

        Raises :class:`LostImageError`, :class:`OtherImageError`.
        """
        try:
            return self._read(number)
        except (OSError, pa.ArrowException) as error:
            raise self._lost(number, error) from error

    def stored(self, number: int) -> NDArray[np.uint8]:
        """Return an image at its stored size, uint8 (height, width, 3).

        Raises :class:`LostImageError`, :class:`OtherImageError`.
        """
        encoded = self.encoded(number)
        try:
            with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
                return np.asarray(image.convert("RGB"))
        except NOT_AN_IMAGE as error:
            raise self._lost(number, error) from error

    def _read(self, number: int) -> bytes:
        shard, row = self._pairs.place(number)
        if shard not in self._open:
            self._open[shard] = _opened(self._pairs.shards[shard])
        tar, keys = self._open[shard]
        return tar.read(keys[row])

    def pixels(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images at the modelled size, uint8 (n, size, size, 3).

        Raises :class:`LostImageError`, :class:`OtherImageError`.
        """
        return self._wait(numbers, self._start(numbers))

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of each batch; the next batches are decoded ahead."""
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
        """Return a function that gives a batch's pixels by its number.

        Batches are decoded ahead while they are asked for in ascending order.
        """
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
            " kept: rebuild this segment's assets from embeddings to filtered_subset, and"
            " image_shards before them if the tar is damaged"
        )


def _opened(shard: Shard) -> tuple[ImageBytes, list[str]]:
    """Open a shard: its tar, and the keys of its kept pairs. Raises :class:`OtherImageError`."""
    kept = shard.read(["key", "sha256"])
    stored = read_shard(shard.tar, ["key", "sha256"])
    sha256_of = dict(zip(stored["key"].to_pylist(), stored["sha256"].to_pylist(), strict=True))
    keys: list[str] = kept["key"].to_pylist()
    for key, sha256 in zip(keys, kept["sha256"].to_pylist(), strict=True):
        if sha256_of.get(key) != sha256:
            raise OtherImageError(
                f"{shard.tar} has another image {key} than {shard.part}: image_shards was"
                " rebuilt after the subset; rebuild this segment's assets from embeddings to"
                " filtered_subset"
            )
    return ImageBytes(shard.tar), keys


def shrunk(encoded: bytes, size: int) -> NDArray[np.uint8]:
    """Decode an image as ``size`` by ``size`` pixels: the largest square in the middle, shrunk.

    Returns uint8 (size, size, 3).
    """
    with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
        # A JPEG is decoded at an eighth, a quarter or half of its size if that is enough.
        image.draft("RGB", (size, size))
        whole = image.convert("RGB")
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(whole.resize((size, size), Image.Resampling.BOX, box))


class BatchOrder:
    """The numbers in each batch by the batch's own number, epoch after epoch without end."""

    def __init__(self, length: int, size: int, epoch: Callable[[int], NDArray[np.int64]]) -> None:
        """``epoch`` returns the order of an epoch, (length,), by its number."""
        self._length, self._size = length, size
        self._epoch = lru_cache(maxsize=2)(epoch)

    def __call__(self, batch: int) -> NDArray[np.int64]:
        places = np.arange(batch * self._size, (batch + 1) * self._size)
        epochs, offsets = places // self._length, places % self._length
        return np.concatenate(
            [self._epoch(epoch)[offsets[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
        )


def captions_of(pairs: Pairs, numbers: NDArray[np.int64]) -> list[str]:
    """Captions of pairs, in the order asked for; those of one shard are in memory at a time."""
    shards, rows = pairs.places(numbers)
    found = [""] * len(numbers)
    for shard in np.unique(shards):
        captions = pairs.shards[shard].captions()
        for at in np.flatnonzero(shards == shard):
            found[at] = captions[rows[at]]
    return found
