"""Embed shards: vectors and rows, aligned, in the numbered parts of a folder."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from laion_assets import schemas
from laion_assets.clip.decode import Shard, decoded
from laion_assets.clip.earlier import (
    DIGESTS,
    Earlier,
    read_digests,
    write_digests,
)
from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.model import ClipLoadError
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.precision import BF16, fallback
from laion_assets.clip.shards import (
    ShardError,
    count_rows,
    digest_of_rows,
    find_shards,
    have_captions,
    shard_number,
)
from laion_assets.clip.share import Found, Share, computed, raw_digests
from laion_assets.clip.vectors import PLACES, Place, SamplesWriter, open_vectors
from laion_assets.files import write_json
from laion_assets.funnel import StageCounts
from laion_assets.layout import EMBEDDINGS, PARTITIONS
from laion_assets.tables import (
    UNITS,
    part_path,
    read_parquet,
)
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

STAGE: Final = EMBEDDINGS

_MADE_OF: Final = ".made_of.json"
"""File that says which shards the parts hold."""
_CAPTIONS: Final = "captions"
"""Key of a shard's note that says whether the folder it is in has texts."""
_COMPUTED_IN: Final = "computed_in"
"""Key of a shard's note as :attr:`EmbeddedWith.computed_in` has it; absent where that is empty."""


class OtherEmbeddingsError(ValueError):
    """The output folder holds embeddings of something else; the message says of what."""


@dataclass
class Embedded:
    """Result of one embedding call."""

    counts: StageCounts
    """Counts of the stage ``embeddings`` over all shards, those of earlier calls included."""
    device: str = "none"
    """The model's; none if it was not loaded."""
    precision: str = "none"
    samples: int = 0
    """Samples that this call has read for the model."""
    taken_over: int = 0
    """Samples that it has copied from an earlier version."""
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
            "samples_taken_over": self.taken_over,
            "samples_per_second": round(self.rate, 1),
            "waited_for_images_share": round(self.waited_seconds / max(self.seconds, 1e-9), 3),
        }


class EmbeddedWith(ModelIdentity, frozen=True):
    """What a manifest of `embeddings` records of the model."""

    dimensions: int
    computed_in: str = ""
    """``bf16`` if the vectors were computed so; empty for all other precisions, whose vectors may
    stand in one table."""

    @classmethod
    def of(cls, model: Model) -> EmbeddedWith:
        return cls(
            **model.identity.model_dump(), dimensions=model.dim, computed_in=computed_in(model)
        )

    def is_of(self, model: Model) -> bool:
        """Whether the model's vectors may stand beside those that this was recorded of."""
        return self.is_same(model.identity) and self.computed_in == computed_in(model)

    def recorded_as(self) -> dict[str, Any]:
        """Metadata of a manifest that :meth:`recorded` reads."""
        return self.model_dump(exclude_defaults=True)


def computed_in(model: Model | ClipOptions) -> str:
    """What :attr:`EmbeddedWith.computed_in` is of a model, or of what the options ask for."""
    precision = model.computed_in if isinstance(model, UnloadedModel) else model.precision
    return precision if precision == BF16 else ""


class OtherModelError(RuntimeError):
    """The model that the settings name is not the one that it was taken for."""


class UnloadedModel:
    """A model that is known by what it has made before, and loaded once something is to be made.

    ``load``: loads the model that the settings name.
    """

    def __init__(self, known: EmbeddedWith, load: Callable[[], ClipModel]) -> None:
        self.identity, self.dim = known.identity, known.dimensions
        self.computed_in = known.computed_in
        self._load = load

    def loaded(self) -> ClipModel:
        """Raises :class:`OtherModelError` if it is another one, and :class:`ClipLoadError`."""
        model = self._load()
        _refuse_fallback(model)
        if not model.identity.is_same(self.identity):
            raise OtherModelError(f"it is {model.identity.title} by now, not {self.identity.title}")
        if self.computed_in != computed_in(model):
            raise OtherModelError(f"it runs in {model.precision} by now")
        return model


Model: TypeAlias = "ClipModel | UnloadedModel"


def _refuse_fallback(model: Model) -> None:
    if isinstance(model, UnloadedModel):
        return  # it is refused once it is loaded
    if problem := fallback(model.options.precision, model.precision):
        raise ClipLoadError(f"{model.key} cannot embed: {problem}")


def embed_shards(
    shards: Path, out: Path, model: Model, options: ClipOptions, *, earlier: Path | None = None
) -> Embedded:
    """Embed every shard of a folder of img2dataset shards.

    Writes the rows (``schemas.EMBEDDED``), in the order of the shards and of their parquet, to
    ``part-NNNNN.parquet``, and their vectors to ``_img_emb/img_emb_NNNNN.npy`` and
    ``_text_emb/text_emb_NNNNN.npy`` (float16, (n, dim), rows of unit length), aligned by row.
    Where no sample has a caption, texts are null and there are no text vectors.

    Each shard's share is a file of its own, below ``.raw``, until all are embedded and joined. A
    later call does not embed again what an earlier one has embedded, joined or not.

    ``earlier``: a folder of embeddings by the same model. What it has with the same text and the
    same bytes of the image is copied.

    Counts of the stage ``embeddings``: the input is the shards' downloaded samples; ``undecodable``
    ones have an image that is missing from the tar or does not decode. Raises
    :class:`OtherModelError`, and :class:`ClipLoadError` for a model that this machine runs in
    another precision than its options name.
    """
    _refuse_fallback(model)
    tars = find_shards(shards)
    captions = have_captions(tars)
    notes = {tar: _note_of_all(model, captions) for tar in tars}
    return _embed(notes, out, model, options, earlier, captions=captions)


def embed_files(
    tars: Sequence[Path],
    out: Path,
    model: ClipModel,
    options: ClipOptions,
) -> Embedded:
    """Embed the given tars, each with its parquet beside it, as :func:`embed_shards` does.

    ``out`` may be any folder, so notes in it record what each shard's rows were made from; later
    calls may add shards, whose rows are put into further parts. Raises :class:`ShardError` for two
    tars of the same number, and :class:`ClipLoadError` as :func:`embed_shards` does. Raises
    :class:`OtherEmbeddingsError`, before anything is written, for a
    folder with embeddings of another model, of another shard of the same number, with captions
    where these shards have none or without where these have some, or without notes.
    """
    _refuse_fallback(model)
    by_number: dict[int, Path] = {}
    for tar in tars:
        other = by_number.setdefault(shard_number(tar), tar)
        if other is not tar:
            raise ShardError(f"{other} and {tar} have the same number, by which shards are known")
    captions = have_captions(tars)
    of_all = _note_of_all(model, captions)
    notes = {tar: _note(tar) | of_all for tar in tars}
    _refuse_other_embeddings(out, {shard_number(tar): note for tar, note in notes.items()}, of_all)
    return _embed(notes, out, model, options, None, captions=captions)


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


def _note(tar: Path) -> dict[str, Any]:
    """Describe a shard that embeddings are made from. Raises :class:`ShardError`."""
    try:
        return {
            "tar": tar.name,
            "tar_bytes": tar.stat().st_size,
            "rows_sha256": digest_of_rows(tar),
        }
    except OSError as error:
        raise ShardError(f"{tar} cannot be read: {error}") from error


def _note_of_all(model: Model, captions: bool) -> dict[str, Any]:
    note = {**model.identity.model_dump(), _CAPTIONS: captions}
    precision = computed_in(model)
    return {**note, _COMPUTED_IN: precision} if precision else note


def _refuse_other_embeddings(
    out: Path, wanted: Mapping[int, Note], of_all: Mapping[str, Any]
) -> None:
    made_of = MadeOf.read(out).shards | _not_joined(out)
    other = [
        f"shard {number:05d}"
        for number, note in made_of.items()
        # A shard that had no samples under another note may have some now.
        if _counts(note).kept and not _is_of(note, wanted.get(number, of_all))
    ]
    if not made_of:
        other = [path.name for path in PARTITIONS[EMBEDDINGS].rows.paths(out)]
    if other:
        raise OtherEmbeddingsError(
            f"{out} holds embeddings of other shards or of another model, or only one of them has "
            f"captions ({other[0]}): choose another folder"
        )


def _is_of(made: Note, wanted: Note) -> bool:
    # The model's version says which it is: the same weights may have another name or place.
    made, wanted = {_CAPTIONS: True, **made}, {_COMPUTED_IN: None, **wanted}
    return all(made.get(name) == value for name, value in wanted.items() if name != "model")


def _embed(
    notes: Mapping[Path, Note],
    out: Path,
    model: Model,
    options: ClipOptions,
    earlier: Path | None,
    *,
    captions: bool,
) -> Embedded:
    embedded, empty = Embedded(StageCounts(STAGE)), Share.empty(model.dim, captions)
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

    def finish(shard: Shard, share: Share) -> None:
        counts = share.write(out / UNITS, shard)
        raw[shard.number] = {**notes[shard.tar], "counts": counts.to_json()}
        # The note comes last: it says that the shard is complete.
        write_json(_raw_note(out, shard.number), raw[shard.number])

    started = time.perf_counter()
    known = Earlier(earlier) if earlier is not None and todo else None
    # The vectors are read at last: those of all shards at once would be too many.
    found: dict[Path, Found] = {}
    lacking = dict.fromkeys(todo, empty.rows)
    """Shard -> the rows that are known of it, for those with more."""
    for tar in todo if known else ():
        assert known
        with Shard.open(tar, captions) as shard:
            found[tar] = here = Found.in_(known, shard)
            embedded.taken_over += len(here.rows)
            progress.advance(len(here.rows), note=tar.name)
            lacking[tar] = here.rows
            if len(here.rows) == len(shard.rows):
                finish(shard, here.share(known, empty))
                del lacking[tar]
    if lacking:
        loaded = model.loaded() if isinstance(model, UnloadedModel) else model
        embedded.device, embedded.precision = str(loaded.device), loaded.precision
        for shard, samples in decoded(lacking, loaded, options, waited, captions=captions):
            advance = partial(progress.advance, note=shard.tar.name)
            added = computed(samples, loaded, options, advance, empty)
            lacked = len(shard.rows) - len(lacking[shard.tar])
            before = found[shard.tar].share(known, empty) if known else empty
            finish(shard, before.with_(added))
            embedded.samples += lacked
            if lacked > len(added.rows):
                progress.advance(lacked - len(added.rows), note=shard.tar.name)
    embedded.seconds = time.perf_counter() - started
    _join(raw, made_of, out, model.dim, PLACES if captions else PLACES[:1])
    for tar in notes:
        embedded.counts.add(_counts(made_of.shards[shard_number(tar)]))
    return embedded


def _join(
    raw: Mapping[int, Note], made_of: MadeOf, out: Path, dim: int, places: Sequence[Place]
) -> None:
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
        digests = [read_digests(out / DIGESTS, _kept(made_of.shards))]
        with SamplesWriter(out, schemas.EMBEDDED, dim, first=first, places=places) as writer:
            for number in new:
                rows = read_parquet(part_path(out / UNITS, number))
                vectors = [open_vectors(place(out / UNITS, number), len(rows)) for place in places]
                writer.write(rows, *vectors)
                digests.append(read_digests(raw_digests(out / UNITS, number), len(rows)))
        write_digests(out / DIGESTS, np.concatenate(digests))
        made_of.parts = first + len(writer.parts)
    made_of.shards |= new
    made_of.write(out)
    for number in raw:
        _raw_note(out, number).unlink(missing_ok=True)
    if (out / UNITS).exists():
        shutil.rmtree(out / UNITS)
