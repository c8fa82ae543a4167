"""Shards in, row-aligned embeddings and metadata out, one set of files per shard."""

from __future__ import annotations

import io
import json
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import (
    IMAGE_FORMATS,
    ShardError,
    find_shards,
    read_rows,
    shard_number,
)
from laion_assets.download.tars import ImageBytes
from laion_assets.files import atomic_path, sha256_file, write_json
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.progress import Log, Progress, silent

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

STAGE: Final = "embeddings"

# What Pillow's readers raise on bytes that are not the image they claim to be.
_NOT_AN_IMAGE: Final = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    struct.error,
    Image.DecompressionBombError,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


class OtherEmbeddingsError(ValueError):
    """A folder holds other embeddings than those asked for."""


def image_path(folder: Path, number: int) -> Path:
    return folder / "img_emb" / f"img_emb_{number:05d}.npy"


def text_path(folder: Path, number: int) -> Path:
    return folder / "text_emb" / f"text_emb_{number:05d}.npy"


def metadata_path(folder: Path, number: int) -> Path:
    return folder / "metadata" / f"metadata_{number:05d}.parquet"


def embed_shards(
    shards: Path, out: Path, model: ClipModel, options: ClipOptions, *, log: Log = silent
) -> StageCounts:
    """Embed every shard of a folder that img2dataset wrote.

    Writes ``img_emb/img_emb_NNNNN.npy`` and ``text_emb/text_emb_NNNNN.npy`` (float16, (n, dim),
    rows of unit length) and ``metadata/metadata_NNNNN.parquet`` (``schemas.EMBEDDED``), aligned
    by row, in the order of the shard's parquet; a shard without samples gives files of no rows.
    A shard whose metadata is in ``out`` already is not embedded again.

    Returns:
        counts of the stage ``embeddings``: in = the shards' downloaded samples; ``undecodable``
        are those whose image is missing from the tar or does not decode.
    """
    return _embed(find_shards(shards), out, model, options, log)


def embed_files(
    tars: Sequence[Path],
    out: Path,
    model: ClipModel,
    options: ClipOptions,
    *,
    log: Log = silent,
) -> StageCounts:
    """As :func:`embed_shards`, for the tars given; each has its parquet beside it.

    ``out`` is anyone's folder, so notes in ``out/.made_of`` say what each shard's files were made
    of; it may grow by more shards. Raises :class:`ShardError` for two tars of the same number, and
    :class:`OtherEmbeddingsError`, before anything is written, for a folder that holds the
    embeddings of another model, of another shard of the same number, or without such notes.
    """
    by_number: dict[int, Path] = {}
    for tar in tars:
        other = by_number.setdefault(shard_number(tar), tar)
        if other is not tar:
            raise ShardError(f"{other} and {tar} have the same number, which names their files")
    notes = {number: _note(tar, model) for number, tar in by_number.items()}
    _refuse_other_embeddings(out, notes, model)
    for number, note in notes.items():
        if not metadata_path(out, number).exists():
            write_json(_note_path(out, number), note)
    return _embed(tars, out, model, options, log)


def _note_path(folder: Path, number: int) -> Path:
    return folder / ".made_of" / f"{number:05d}.json"


def _note(tar: Path, model: ClipModel) -> dict[str, Any]:
    """What a shard's embeddings are made of. Raises :class:`ShardError`."""
    try:
        shard = {
            "tar": tar.name,
            "tar_bytes": tar.stat().st_size,
            "parquet_sha256": sha256_file(tar.with_suffix(".parquet")),
        }
    except OSError as error:
        raise ShardError(f"{tar} cannot be read: {error}") from error
    return shard | _note_of_model(model)


def _note_of_model(model: ClipModel) -> dict[str, Any]:
    return {"model": model.key, "model_version": model.version}


def _refuse_other_embeddings(
    out: Path, notes: Mapping[int, Mapping[str, Any]], model: ClipModel
) -> None:
    for done in sorted((out / "metadata").glob("metadata_*.parquet")):
        number = int(done.stem.removeprefix("metadata_"))
        path = _note_path(out, number)
        made_of = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        wanted = notes.get(number, _note_of_model(model))
        if not wanted.items() <= made_of.items():
            raise OtherEmbeddingsError(
                f"{out} holds the embeddings of other shards or another model ({done.name}): "
                "give another folder"
            )


def _embed(
    tars: Sequence[Path], out: Path, model: ClipModel, options: ClipOptions, log: Log
) -> StageCounts:
    counts = StageCounts(STAGE)
    done = [metadata_path(out, shard_number(tar)).exists() for tar in tars]
    progress = Progress("embeddings", "shards", len(tars), log, resumed=sum(done))
    for tar, there in zip(tars, done, strict=True):
        rows = read_rows(tar)
        if not there:
            _embed_shard(tar, rows, out, model, options)
            progress.advance(note=f"{len(rows)} samples in {tar.name}")
        kept = pq.ParquetFile(metadata_path(out, shard_number(tar))).read(columns=["key"])
        counts.add(_count(rows, kept))
    return counts


def _count(rows: pa.Table, kept: pa.Table) -> StageCounts:
    counts = StageCounts(STAGE)
    counts.keep(len(kept))
    lost = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=kept["key"])))
    urls = lost["url"].slice(0, EXAMPLES_KEPT).to_pylist()
    for url in urls:
        counts.reject("undecodable", url)
    counts.reject("undecodable", n=len(lost) - len(urls))
    return counts


def _embed_shard(
    tar: Path, rows: pa.Table, out: Path, model: ClipModel, options: ClipOptions
) -> None:
    import torch

    size = options.batch_size
    kept: list[int] = []
    image_parts: list[NDArray[np.float16]] = []
    text_parts: list[NDArray[np.float16]] = []
    for batch in _batches(_decoded(tar, rows, model, options), size):
        kept += [row for row, _, _ in batch]
        images = model.embed_images(torch.stack([image for _, image, _ in batch]))
        texts = model.embed_tokens(torch.stack([tokens for _, _, tokens in batch]))
        image_parts.append(images.astype(np.float16))
        text_parts.append(texts.astype(np.float16))
    number = shard_number(tar)
    none = np.zeros((0, model.dim), dtype=np.float16)
    save_vectors(image_path(out, number), np.concatenate([none, *image_parts]))
    save_vectors(text_path(out, number), np.concatenate([none, *text_parts]))
    with atomic_path(metadata_path(out, number)) as beside:
        pq.write_table(
            rows.take(pa.array(kept, pa.int64())),
            beside,
            compression="zstd",
            row_group_size=100_000,
        )


def save_vectors(path: Path, vectors: NDArray[np.float16]) -> None:
    """Publish an array as a plain npy file."""
    with atomic_path(path) as beside:
        np.save(beside, np.ascontiguousarray(vectors), allow_pickle=False)


def _decoded(
    tar: Path, rows: pa.Table, model: ClipModel, options: ClipOptions
) -> Iterator[tuple[int, Any, Any]]:
    """Row number, preprocessed image and tokens of each sample that decodes, in order.

    Threads decode and preprocess ahead (Pillow's codecs and resizing release the GIL), at most
    two batches, while the caller's model computes.
    """
    if not len(rows):
        return

    def prepare(sample: tuple[int, bytes, str]) -> tuple[int, Any, Any] | None:
        row, encoded, text = sample
        try:
            image = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS).convert("RGB")
        except _NOT_AN_IMAGE:
            return None
        return row, model.preprocess(image), model.tokenizer([text])[0]

    keys, texts = rows["key"].to_pylist(), rows["text"].to_pylist()
    with ImageBytes(tar) as images, ThreadPoolExecutor(options.decode_threads) as pool:
        samples = (
            (row, images.read(key), text)
            for row, (key, text) in enumerate(zip(keys, texts, strict=True))
        )
        ahead = 2 * options.batch_size
        yield from filter(None, _map_ahead(pool, prepare, samples, ahead))


def _map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Iterator[Result]:
    """As ``pool.map``, but takes at most ``ahead`` items more than it has given."""
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
