"""Read shards' samples and decode their images ahead of the model.

What does not belong here: what becomes of the vectors (:mod:`laion_assets.clip.embed`).
"""

from __future__ import annotations

import io
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from laion_assets.clip.earlier import digest_of
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import IMAGE_FORMATS, NOT_AN_IMAGE, read_rows, shard_number
from laion_assets.download.errors import ImageRefused
from laion_assets.download.formats import lean
from laion_assets.download.tars import ImageBytes

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prepared:
    """A sample whose image decodes, ready for the model."""

    row: int
    """Number of its row among the shard's."""
    digest: bytes
    """Digest of its image's bytes."""
    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64] | None
    """None: it has no text."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard that is being read; ``rows`` are its downloaded samples (``schemas.EMBEDDED``).

    As a context, it closes the tar.
    """

    tar: Path
    rows: pa.Table
    images: ImageBytes
    captions: bool
    """Whether there are texts."""

    @classmethod
    def open(cls, tar: Path, captions: bool) -> Shard:
        return cls(tar, read_rows(tar, captions=captions), ImageBytes(tar), captions)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.images.close()

    @property
    def number(self) -> int:
        return shard_number(self.tar)


def decoded(
    tars: Mapping[Path, NDArray[np.int64]],
    model: ClipModel,
    options: ClipOptions,
    waited: Callable[[float], None],
    *,
    captions: bool,
) -> Iterator[tuple[Shard, Iterator[Prepared]]]:
    """Yield each shard with its samples that decode, in order, but for rows that are known.

    ``tars``: each with the numbers of these rows. ``captions``: whether texts are wanted.
    Consume one shard's samples before taking the next shard. Threads prepare at most two batches
    ahead, across shards, while the caller's model computes. Pillow's codecs and resizing release
    the GIL, and only the tokenizer calls torch here, so no thread brings a thread pool of torch's
    own. The next tar is indexed meanwhile. ``waited`` gets the seconds of each time that the caller
    had to wait.
    """

    def prepare(sample: _Sample) -> tuple[Shard, Prepared | None]:
        shard, row, encoded, text = sample
        if row is None:
            return shard, None
        try:
            image = Image.open(io.BytesIO(lean(encoded)), formats=IMAGE_FORMATS).convert("RGB")
        except (*NOT_AN_IMAGE, ImageRefused):
            return shard, None
        tokens = model.tokenize([text])[0] if text is not None else None
        return shard, Prepared(row, digest_of(encoded), model.pixels(image), tokens)

    threads = options.decode_threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(1) as opener, ThreadPoolExecutor(threads) as decoders:
        opened = _map_ahead(opener, lambda tar: Shard.open(tar, captions), tars, 1)
        samples = itertools.chain.from_iterable(
            _samples(shard, set(tars[shard.tar].tolist())) for shard in opened
        )
        ahead = _map_ahead(decoders, prepare, samples, 2 * options.batch_size)
        for shard, of_shard in itertools.groupby(_timed(ahead, waited), itemgetter(0)):
            yield shard, (sample for _, sample in of_shard if sample is not None)


_Sample = tuple[Shard, int | None, bytes, str | None]


def _samples(shard: Shard, but: Collection[int]) -> Iterator[_Sample]:
    yield shard, None, b"", ""  # so that a shard without samples is seen, too
    with shard:
        columns = (shard.rows[name].to_pylist() for name in ("key", "text"))
        for row, (key, text) in enumerate(zip(*columns, strict=True)):
            if row not in but:
                yield shard, row, shard.images.read(key), text


def _timed(items: Iterator[Item], waited: Callable[[float], None]) -> Iterator[Item]:
    while True:
        started = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            waited(time.perf_counter() - started)
        yield item


def _map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Iterator[Result]:
    """Map like ``pool.map``, but take at most ``ahead`` items more than were yielded."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
