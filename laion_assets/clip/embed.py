"""Embed shards: row-aligned vectors and metadata, one set of files per shard."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import (
    IMAGE_FORMATS,
    NOT_AN_IMAGE,
    ShardError,
    count_rows,
    digest_of_rows,
    find_shards,
    read_rows,
    shard_number,
)
from laion_assets.download.tars import ImageBytes
from laion_assets.files import atomic_path, write_json
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.layout import (
    EMBEDDINGS,
    PARTITIONS,
)
from laion_assets.tables import read_parquet
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

STAGE: Final = EMBEDDINGS

Item = TypeVar("Item")
Result = TypeVar("Result")


class OtherEmbeddingsError(ValueError):
    """The output folder holds embeddings of something else; the message says of what."""


@dataclass
class Embedded:
    """Result of one embedding call."""

    counts: StageCounts
    """Counts of the stage ``embeddings`` over all shards, those of earlier calls included."""
    device: str
    precision: str
    samples: int = 0
    """Samples that this call read."""
    seconds: float = 0.0
    """Wall-clock time of this call, without loading the model."""
    waited_seconds: float = 0.0
    """Part of ``seconds`` spent waiting for images to be read and decoded."""

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / max(self.seconds, 1e-9)

    def metadata(self) -> dict[str, Any]:
        """Metadata for people, in addition to the counts."""
        return {
            "device": self.device,
            "precision": self.precision,
            "samples_embedded": self.samples,
            "samples_per_second": round(self.rate, 1),
            "waited_for_images_share": round(self.waited_seconds / max(self.seconds, 1e-9), 3),
        }


class EmbeddedWith(BaseModel, frozen=True):
    """What a manifest of `embeddings` records of the model."""

    model: str
    """MODEL/PRETRAINED, as people name it."""
    model_version: str
    """Digest of the weights."""
    dimensions: int

    @classmethod
    def of(cls, model: ClipModel) -> EmbeddedWith:
        return cls(model=model.key, model_version=model.version, dimensions=model.dim)


def image_path(folder: Path, number: int) -> Path:
    return folder / "img_emb" / f"img_emb_{number:05d}.npy"


def text_path(folder: Path, number: int) -> Path:
    return folder / "text_emb" / f"text_emb_{number:05d}.npy"


def metadata_path(folder: Path, number: int) -> Path:
    return folder / "metadata" / f"metadata_{number:05d}.parquet"


def embed_shards(shards: Path, out: Path, model: ClipModel, options: ClipOptions) -> Embedded:
    """Embed every shard of a folder of img2dataset shards.

    Writes ``img_emb/img_emb_NNNNN.npy`` and ``text_emb/text_emb_NNNNN.npy`` (float16, (n, dim),
    rows of unit length) and ``metadata/metadata_NNNNN.parquet`` (``schemas.EMBEDDED``), aligned
    by row, in the order of the shard's parquet. A shard without samples gives vectors of no rows
    and no metadata. A shard whose files are in ``out`` already is not embedded again.

    Counts of the stage ``embeddings``: the input is the shards' downloaded samples; ``undecodable``
    ones have an image that is missing from the tar or does not decode.
    """
    return _embed(find_shards(shards), out, model, options)


def embed_files(
    tars: Sequence[Path],
    out: Path,
    model: ClipModel,
    options: ClipOptions,
) -> Embedded:
    """Embed the given tars, each with its parquet beside it, as :func:`embed_shards` does.

    ``out`` may be any folder, so notes in ``out/.made_of`` record what each shard's files were made
    from; later calls may add shards. Raises :class:`ShardError` for two tars of the same number.
    Raises :class:`OtherEmbeddingsError`, before anything is written, for a folder with embeddings
    of another model, of another shard of the same number, or without such notes.
    """
    by_number: dict[int, Path] = {}
    for tar in tars:
        other = by_number.setdefault(shard_number(tar), tar)
        if other is not tar:
            raise ShardError(
                f"{other} and {tar} have the same number, by which their output files are named"
            )
    notes = {number: _note(tar, model) for number, tar in by_number.items()}
    _refuse_other_embeddings(out, notes, model)
    for number, note in notes.items():
        if not metadata_path(out, number).exists():
            # A shard that had no samples under another note may have some now.
            if _read_note(out, number) != note:
                text_path(out, number).unlink(missing_ok=True)
            write_json(_note_path(out, number), note)
    return _embed(tars, out, model, options)


def _note_path(folder: Path, number: int) -> Path:
    return folder / ".made_of" / f"{number:05d}.json"


def _read_note(folder: Path, number: int) -> dict[str, Any]:
    path = _note_path(folder, number)
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return note


def _note(tar: Path, model: ClipModel) -> dict[str, Any]:
    """Describe what a shard's embeddings are made from. Raises :class:`ShardError`."""
    try:
        shard = {
            "tar": tar.name,
            "tar_bytes": tar.stat().st_size,
            "rows_sha256": digest_of_rows(tar),
        }
    except OSError as error:
        raise ShardError(f"{tar} cannot be read: {error}") from error
    return shard | _note_of_model(model)


def _note_of_model(model: ClipModel) -> dict[str, Any]:
    return {"model": model.key, "model_version": model.version}


def _refuse_other_embeddings(
    out: Path, notes: Mapping[int, Mapping[str, Any]], model: ClipModel
) -> None:
    for done in PARTITIONS[EMBEDDINGS].rows.paths(out):
        number = int(done.stem.removeprefix("metadata_"))
        made_of = _read_note(out, number)
        wanted = notes.get(number, _note_of_model(model))
        if not wanted.items() <= made_of.items():
            raise OtherEmbeddingsError(
                f"{out} holds embeddings of other shards or of another model ({done.name}): "
                "choose another folder"
            )


def _embed(tars: Sequence[Path], out: Path, model: ClipModel, options: ClipOptions) -> Embedded:
    embedded = Embedded(StageCounts(STAGE), str(model.device), model.precision)
    sizes = {tar: count_rows(tar) for tar in tars}
    todo = [tar for tar in tars if not _is_done(out, shard_number(tar))]
    total, new = sum(sizes.values()), sum(sizes[tar] for tar in todo)
    progress = Progress(EMBEDDINGS, "samples", total, logger, resumed=total - new)
    counted: dict[Path, StageCounts] = {}
    started = time.perf_counter()
    for shard, samples in _shards(todo, model, options, embedded):
        counted[shard.tar] = _embed_shard(shard, samples, out, model, options, progress)
        embedded.samples += len(shard.rows)
    embedded.seconds = time.perf_counter() - started
    for tar in tars:
        # Shards of earlier calls are counted from their files.
        embedded.counts.add(counted.get(tar) or _count(read_rows(tar), _kept_keys(out, tar)))
    return embedded


def _is_done(out: Path, number: int) -> bool:
    """Whether a shard is done: the metadata are written last, and vectors of no rows have none."""
    if metadata_path(out, number).exists():
        return True
    texts = text_path(out, number)
    return texts.exists() and len(np.load(texts, mmap_mode="r", allow_pickle=False)) == 0


def _kept_keys(out: Path, tar: Path) -> Any:
    metadata = metadata_path(out, shard_number(tar))
    if not metadata.exists():
        return pa.array([], pa.string())
    return read_parquet(metadata, ["key"])["key"]


def _count(rows: pa.Table, kept: Any) -> StageCounts:
    counts = StageCounts(STAGE)
    counts.keep(len(kept))
    lost = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=kept)))
    urls = lost["url"].slice(0, EXAMPLES_KEPT).to_pylist()
    for url in urls:
        counts.reject("undecodable", url)
    counts.reject("undecodable", n=len(lost) - len(urls))
    return counts


@dataclass(frozen=True)
class _Prepared:
    """A sample whose image decodes, ready for the model."""

    row: int
    pixels: NDArray[np.uint8]
    tokens: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Shard:
    tar: Path
    rows: pa.Table
    images: ImageBytes


def _embed_shard(
    shard: _Shard,
    samples: Iterator[_Prepared],
    out: Path,
    model: ClipModel,
    options: ClipOptions,
    progress: Progress,
) -> StageCounts:
    """Embed a shard's images as they come, then the texts of those that decoded, by length.

    Batches end with the shard, so its bytes do not depend on what else this call embeds.
    """
    kept: list[int] = []
    tokens: list[NDArray[np.int64]] = []

    def pixels(batch: Sequence[_Prepared]) -> list[NDArray[np.uint8]]:
        kept.extend(sample.row for sample in batch)
        tokens.extend(sample.tokens for sample in batch)
        return [sample.pixels for sample in batch]

    images = [np.zeros((0, model.dim), dtype=np.float16)]
    batches = map(pixels, _batches(samples, options.batch_size))
    for vectors in model.embed_images(batches):
        images.append(vectors.astype(np.float16))
        progress.advance(len(vectors), note=shard.tar.name)
    texts = model.embed_tokens(np.stack(tokens)) if tokens else images[0]
    number = shard_number(shard.tar)
    save_vectors(image_path(out, number), np.concatenate(images))
    save_vectors(text_path(out, number), texts.astype(np.float16))
    rows = shard.rows.take(pa.array(kept, pa.int64()))
    if len(rows):
        # No file for no rows: embedding-reader skips empty vectors only, and would then pair each
        # later file's vectors with the metadata of the file before.
        with atomic_path(metadata_path(out, number)) as beside:
            pq.write_table(rows, beside, compression="zstd", row_group_size=100_000)
    if lost := len(shard.rows) - len(rows):
        progress.advance(lost, note=shard.tar.name)
    return _count(shard.rows, rows["key"])


def save_vectors(path: Path, vectors: NDArray[np.float16]) -> None:
    """Publish an array as a plain npy file."""
    with atomic_path(path) as beside:
        np.save(beside, np.ascontiguousarray(vectors), allow_pickle=False)


def _shards(
    tars: Sequence[Path], model: ClipModel, options: ClipOptions, embedded: Embedded
) -> Iterator[tuple[_Shard, Iterator[_Prepared]]]:
    """Yield each shard with its samples that decode, in order.

    Consume one shard's samples before taking the next shard. Threads prepare at most two batches
    ahead, across shards, while the caller's model computes. Pillow's codecs and resizing release
    the GIL, and only the tokenizer calls torch here, so no thread brings a thread pool of torch's
    own. The next tar is indexed meanwhile.
    """

    def prepare(sample: _Sample) -> tuple[_Shard, _Prepared | None]:
        shard, row, encoded, text = sample
        if row is None:
            return shard, None
        try:
            image = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS).convert("RGB")
        except NOT_AN_IMAGE:
            return shard, None
        return shard, _Prepared(row, model.pixels(image), model.tokenize([text])[0])

    threads = options.decode_threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(1) as opener, ThreadPoolExecutor(threads) as decoders:
        opened = _map_ahead(opener, _open, tars, 1)
        samples = itertools.chain.from_iterable(map(_samples, opened))
        ahead = _map_ahead(decoders, prepare, samples, 2 * options.batch_size)
        for shard, of_shard in itertools.groupby(_timed(ahead, embedded), itemgetter(0)):
            yield shard, (sample for _, sample in of_shard if sample is not None)


def _open(tar: Path) -> _Shard:
    return _Shard(tar, read_rows(tar), ImageBytes(tar))


_Sample = tuple[_Shard, int | None, bytes, str]


def _samples(shard: _Shard) -> Iterator[_Sample]:
    yield shard, None, b"", ""  # so that a shard without samples is seen, too
    with shard.images as images:
        columns = (shard.rows[name].to_pylist() for name in ("key", "text"))
        for row, (key, text) in enumerate(zip(*columns, strict=True)):
            yield shard, row, images.read(key), text


def _timed(items: Iterator[Item], embedded: Embedded) -> Iterator[Item]:
    """Yield the items; count the time until each one arrives as waiting."""
    while True:
        started = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            embedded.waited_seconds += time.perf_counter() - started
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


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
