"""Embed shards: vectors and rows, aligned, in the numbered parts of a folder."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.clip.decode import Prepared, Shard, batches, decoded
from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.shards import (
    ShardError,
    count_rows,
    digest_of_rows,
    find_shards,
    shard_number,
)
from laion_assets.files import write_json
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.layout import EMBEDDINGS, PARTITIONS
from laion_assets.tables import (
    ROWS_PER_PART,
    UNITS,
    PartsWriter,
    VectorsWriter,
    part_path,
    read_parquet,
    write_table,
)
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

STAGE: Final = EMBEDDINGS

_MADE_OF: Final = ".made_of.json"
"""File that says which shards the parts hold."""


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


class EmbeddedWith(ModelIdentity, frozen=True):
    """What a manifest of `embeddings` records of the model."""

    dimensions: int

    @classmethod
    def of(cls, model: ClipModel) -> EmbeddedWith:
        return cls(**model.identity.model_dump(), dimensions=model.dim)


def image_path(folder: Path, number: int) -> Path:
    """Place of the image vectors of the folder's part ``number``."""
    return folder / "_img_emb" / f"img_emb_{number:05d}.npy"


def text_path(folder: Path, number: int) -> Path:
    """Place of the text vectors of the folder's part ``number``."""
    return folder / "_text_emb" / f"text_emb_{number:05d}.npy"


_PLACES: Final[Sequence[Callable[[Path, int], Path]]] = (image_path, text_path)


def open_vectors(path: Path, rows: int) -> NDArray[Any]:
    """Memory-mapped array (rows, dim). Raises ``ValueError`` for another number of rows."""
    vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise ValueError(f"{path}: the shape {vectors.shape} does not fit {rows} rows")
    return vectors


class SamplesWriter:
    """Writes rows into a folder's parts, and the vectors of each part beside it.

    As :class:`PartsWriter` does: parts are full but for the last, the first always exists, and
    those in the folder from number ``first`` on are replaced. ``dim``: width of the vectors.
    ``options``: of :class:`PartsWriter`.
    """

    def __init__(
        self, folder: Path, schema: pa.Schema, dim: int, *, first: int = 0, **options: Any
    ) -> None:
        self._folder, self._dim, self._number = folder, dim, first
        self._rows = PartsWriter(folder, schema, rows=ROWS_PER_PART, first=first, **options)
        self._part = ExitStack()
        self._writers: list[VectorsWriter] = []
        self._room = 0

    @property
    def parts(self) -> list[Path]:
        return self._rows.parts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self._writers:
            self._open()
        self._part.__exit__(kind, error, trace)
        self._rows.__exit__(kind, error, trace)
        number = self._number
        while kind is None and any(place(self._folder, number).exists() for place in _PLACES):
            for place in _PLACES:
                place(self._folder, number).unlink(missing_ok=True)
            number += 1

    def write(self, rows: pa.Table, images: NDArray[Any], texts: NDArray[Any]) -> None:
        """Add rows and their vectors, (m, ``dim``) each."""
        while len(rows):
            if not self._room:
                self._open()
            n = min(self._room, len(rows))
            for writer, vectors in zip(self._writers, (images, texts), strict=True):
                writer.write(vectors[:n])
            self._room -= n
            if not self._room:
                # The rows come last: with them the part is complete.
                self._part.close()
            self._rows.write(rows.slice(0, n))
            rows, images, texts = rows.slice(n), images[n:], texts[n:]

    def _open(self) -> None:
        self._writers = [
            self._part.enter_context(VectorsWriter(place(self._folder, self._number), self._dim))
            for place in _PLACES
        ]
        self._number, self._room = self._number + 1, ROWS_PER_PART


def embed_shards(shards: Path, out: Path, model: ClipModel, options: ClipOptions) -> Embedded:
    """Embed every shard of a folder of img2dataset shards.

    Writes the rows (``schemas.EMBEDDED``), in the order of the shards and of their parquet, to
    ``part-NNNNN.parquet``, and their vectors to ``_img_emb/img_emb_NNNNN.npy`` and
    ``_text_emb/text_emb_NNNNN.npy`` (float16, (n, dim), rows of unit length), aligned by row.

    Each shard's share is a file of its own, below ``.raw``, until all are embedded and joined. A
    later call does not embed again what an earlier one has embedded, joined or not.

    Counts of the stage ``embeddings``: the input is the shards' downloaded samples; ``undecodable``
    ones have an image that is missing from the tar or does not decode.
    """
    notes = {tar: _note_of_model(model) for tar in find_shards(shards)}
    return _embed(notes, out, model, options)


def embed_files(
    tars: Sequence[Path],
    out: Path,
    model: ClipModel,
    options: ClipOptions,
) -> Embedded:
    """Embed the given tars, each with its parquet beside it, as :func:`embed_shards` does.

    ``out`` may be any folder, so notes in it record what each shard's rows were made from; later
    calls may add shards, whose rows are put into further parts. Raises :class:`ShardError` for two
    tars of the same number. Raises :class:`OtherEmbeddingsError`, before anything is written, for a
    folder with embeddings of another model, of another shard of the same number, or without notes.
    """
    by_number: dict[int, Path] = {}
    for tar in tars:
        other = by_number.setdefault(shard_number(tar), tar)
        if other is not tar:
            raise ShardError(f"{other} and {tar} have the same number, by which shards are known")
    notes = {tar: _note(tar, model) for tar in tars}
    _refuse_other_embeddings(out, {shard_number(tar): note for tar, note in notes.items()}, model)
    return _embed(notes, out, model, options)


Note = Mapping[str, Any]
"""What a shard's rows were made from and, once they are made, their counts."""


@dataclass
class MadeOf:
    """Notes on the shards whose rows a folder's parts hold."""

    parts: int = 0
    """Number of parts that these rows fill."""
    shards: dict[int, Note] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> MadeOf:
        """The notes of a folder; none for a folder without."""
        path = folder / _MADE_OF
        if not path.exists():
            return cls()
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(value["parts"], {int(number): note for number, note in value["shards"].items()})

    def write(self, folder: Path) -> None:
        shards = {f"{number:05d}": note for number, note in self.shards.items()}
        write_json(folder / _MADE_OF, {"parts": self.parts, "shards": shards})


def _raw_note(folder: Path, number: int) -> Path:
    return folder / UNITS / f"{number:05d}.json"


def _not_joined(folder: Path) -> dict[int, Note]:
    """Notes on the finished shards below ``.raw``."""
    paths = sorted((folder / UNITS).glob("*.json"))
    return {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _counts(note: Note) -> StageCounts:
    return StageCounts.from_json(note["counts"])


def _kept(shards: Mapping[int, Note]) -> int:
    return sum(_counts(note).kept for note in shards.values())


def _note(tar: Path, model: ClipModel) -> Note:
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
    return model.identity.model_dump()


def _refuse_other_embeddings(out: Path, wanted: Mapping[int, Note], model: ClipModel) -> None:
    made_of = MadeOf.read(out).shards | _not_joined(out)
    other = [
        f"shard {number:05d}"
        for number, note in made_of.items()
        # A shard that had no samples under another note may have some now.
        if _counts(note).kept and not _is_of(note, wanted.get(number, _note_of_model(model)))
    ]
    if not made_of:
        other = [path.name for path in PARTITIONS[EMBEDDINGS].rows.paths(out)]
    if other:
        raise OtherEmbeddingsError(
            f"{out} holds embeddings of other shards or of another model ({other[0]}): "
            "choose another folder"
        )


def _is_of(made: Note, wanted: Note) -> bool:
    # The model's version says which it is: the same weights may have another name or place.
    return all(made.get(name) == value for name, value in wanted.items() if name != "model")


def _embed(
    notes: Mapping[Path, Note], out: Path, model: ClipModel, options: ClipOptions
) -> Embedded:
    embedded = Embedded(StageCounts(STAGE), str(model.device), model.precision)
    made_of, raw = MadeOf.read(out), _not_joined(out)
    done = made_of.shards | raw
    todo = [
        tar
        for tar, note in notes.items()
        if shard_number(tar) not in done or not _is_of(done[shard_number(tar)], note)
    ]
    for tar in todo:
        _raw_note(out, shard_number(tar)).unlink(missing_ok=True)
    sizes = {tar: count_rows(tar) for tar in notes}
    total, new = sum(sizes.values()), sum(sizes[tar] for tar in todo)
    progress = Progress(EMBEDDINGS, "samples", total, logger, resumed=total - new)

    def waited(seconds: float) -> None:
        embedded.waited_seconds += seconds

    started = time.perf_counter()
    for shard, samples in decoded(todo, model, options, waited):
        counts = _embed_shard(shard, samples, out / UNITS, model, options, progress)
        raw[shard.number] = {**notes[shard.tar], "counts": counts.to_json()}
        # The note comes last: it says that the shard is complete.
        write_json(_raw_note(out, shard.number), raw[shard.number])
        embedded.samples += len(shard.rows)
    embedded.seconds = time.perf_counter() - started
    _join(raw, made_of, out, model.dim)
    for tar in notes:
        embedded.counts.add(_counts(made_of.shards[shard_number(tar)]))
    return embedded


def _join(raw: Mapping[int, Note], made_of: MadeOf, out: Path, dim: int) -> None:
    """Put the shards below ``.raw`` into parts behind those that there are, and delete ``.raw``.

    A kill may come at any point: the next call writes parts again that the notes do not count, and
    deletes what is below ``.raw`` though the notes have it. A shard's note goes first.
    """
    new = {
        number: note for number, note in sorted(raw.items()) if note != made_of.shards.get(number)
    }
    if _kept(new) or not made_of.parts:
        # A part without rows, which stands for a table without rows, is replaced.
        first = made_of.parts if _kept(made_of.shards) else 0
        with SamplesWriter(out, schemas.EMBEDDED, dim, first=first) as writer:
            for number in new:
                rows = read_parquet(part_path(out / UNITS, number))
                vectors = [open_vectors(place(out / UNITS, number), len(rows)) for place in _PLACES]
                writer.write(rows, *vectors)
        made_of.parts = first + len(writer.parts)
    made_of.shards |= new
    made_of.write(out)
    for number in raw:
        _raw_note(out, number).unlink(missing_ok=True)
    if (out / UNITS).exists():
        shutil.rmtree(out / UNITS)


def _embed_shard(
    shard: Shard,
    samples: Iterator[Prepared],
    raw: Path,
    model: ClipModel,
    options: ClipOptions,
    progress: Progress,
) -> StageCounts:
    """Embed a shard's images as they come, then the texts of those that decoded, by length.

    Batches end with the shard, so its bytes do not depend on what else this call embeds.
    """
    kept: list[int] = []
    tokens: list[NDArray[np.int64]] = []

    def pixels(batch: Sequence[Prepared]) -> list[NDArray[np.uint8]]:
        kept.extend(sample.row for sample in batch)
        tokens.extend(sample.tokens for sample in batch)
        return [sample.pixels for sample in batch]

    with VectorsWriter(image_path(raw, shard.number), model.dim) as images:
        for vectors in model.embed_images(map(pixels, batches(samples, options.batch_size))):
            images.write(vectors)
            progress.advance(len(vectors), note=shard.tar.name)
    with VectorsWriter(text_path(raw, shard.number), model.dim) as texts:
        if tokens:
            texts.write(model.embed_tokens(np.stack(tokens)))
    rows = shard.rows.take(pa.array(kept, pa.int64()))
    write_table(part_path(raw, shard.number), rows)
    if lost := len(shard.rows) - len(rows):
        progress.advance(lost, note=shard.tar.name)
    return _count(shard.rows, rows["key"])


def _count(rows: pa.Table, kept: Any) -> StageCounts:
    counts = StageCounts(STAGE)
    counts.keep(len(kept))
    lost = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=kept)))
    urls = lost["url"].slice(0, EXAMPLES_KEPT).to_pylist()
    for url in urls:
        counts.reject("undecodable", url)
    counts.reject("undecodable", n=len(lost) - len(urls))
    return counts
