"""An index folder: `index.json`, written last, and the index runs and codecs that it names.

An index run holds the vectors of some segments, with rows numbered from 0. Its files are
`image.index` and `text.index` (flat), or `image.lists` and `text.lists` (codes of a codec, which
is in ``codec/<id>/``) with `image_truth.npz` and `text_truth.npz`; and `ids.npy`, the SAMPLE_ID of
each row. A run of images without captions has none of the texts' files.

A segment's own index is one run, in the folder itself; a merged index has its runs in ``runs/``,
those of a codec with `image_found.npz` and `text_found.npz` (:mod:`laion_assets.knn.found`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from laion_assets import __version__
from laion_assets.clip.identity import ModelIdentity
from laion_assets.files import atomic_path, link_or_copy, write_text
from laion_assets.knn.lists import Renumbering
from laion_assets.knn.options import FLAT_KINDS
from laion_assets.knn.subset import MODALITIES, Modality
from laion_assets.layout import SegmentKey
from laion_assets.schemas import INDEX_IDS
from laion_assets.tables import TableWriter, write_array

Summary = TypeVar("Summary", bound=BaseModel)

METRIC: Final = "inner_product"
_IDS_GROUP_ROWS: Final = 65_536


class IndexMismatchError(ValueError):
    """Indices, ids or rows do not belong together; the message says which."""


class PartRows(NamedTuple):
    """One part of a subset: its number, its rows, and the beginnings of the SHA-256 of its vectors'
    files. Those are empty if the subset was no published one."""

    number: int
    rows: int
    image: str = ""
    text: str = ""

    def digest(self, modality: Modality) -> str:
        return self.image if modality == "image" else self.text


class SegmentRows(NamedTuple):
    """One segment's rows in an index run. In `index.json` it is a list: there may be 10,000."""

    crawl: str
    """The crawl's name; empty if the subset is of no known crawl."""
    segment: str
    """The segment's number; empty likewise."""
    version: str
    """Data version of the segment's own index."""
    parts: tuple[PartRows, ...]
    """The subset's parts, in order."""
    residual: tuple[float, ...] = ()
    """For each of the run's modalities, one minus the mean cosine of the vectors with their cells'
    centres; empty in a flat run."""
    dropped: bool = False
    """Whether the segment was replaced or removed; its rows are still in the files and are
    skipped."""
    token: str = ""
    """The lake's token of the segment's own index when ``version`` was read; it changes when that
    is published again."""

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def key(self) -> SegmentKey:
        """Key of the segment. Raises ``ValueError`` if it is of no known crawl."""
        return SegmentKey(self.crawl, self.segment)


Recall = Mapping[str, float]
"""Number of neighbours -> share of them that is found, 0..1."""


class IndexRun(BaseModel, frozen=True):
    """Files with the vectors of some segments; ``codec`` is empty for a flat run.

    ``recall``: that of a flat run in a merged index, by modality. It is measured when the run is
    written or loses rows.
    """

    folder: str
    level: int
    kind: str
    codec: str
    segments: tuple[SegmentRows, ...]
    modalities: tuple[Modality, ...] = tuple(MODALITIES)
    """What there are vectors of: of images without captions, images alone."""
    recall: Mapping[str, Recall] = {}

    @property
    def rows(self) -> int:
        """Rows in the files."""
        return sum(segment.rows for segment in self.segments)

    @property
    def n(self) -> int:
        """Live rows: those in the files minus the dropped ones."""
        return sum(segment.rows for segment in self.segments if not segment.dropped)

    def renumbering(self, first: int, *, close: bool = False) -> Renumbering:
        """New numbers of the run's rows in an index where the run begins at row ``first``.

        Dropped rows get none. With ``close`` the others close the gaps.
        """
        starts = np.cumsum([0, *(segment.rows for segment in self.segments)])[:-1]
        firsts, at = [], first
        for segment, start in zip(self.segments, starts, strict=True):
            if segment.dropped:
                firsts.append(-1)
            else:
                firsts.append(at if close else first + int(start))
                at += segment.rows
        return Renumbering(starts.astype(np.int64), np.array(firsts, dtype=np.int64))

    def live_bits(self) -> npt.NDArray[np.uint8]:
        """A bit for each row, from the lowest of a byte: whether it is live, ``(rows / 8,)``."""
        bits = np.full(-(-self.rows // 8), 0xFF, np.uint8)
        start = 0
        for segment in self.segments:
            end = start + segment.rows
            if segment.dropped:
                near = slice(start // 8, -(-end // 8))
                some = np.unpackbits(bits[near], bitorder="little")
                some[start - 8 * near.start : end - 8 * near.start] = 0
                bits[near] = np.packbits(some, bitorder="little")
            start = end
        return bits

    def file_names(self) -> list[str]:
        names = ["ids.npy"]
        for modality in self.modalities:
            names.append(vectors_name(self.kind, modality))
            if self.codec:
                names.append(truth_name(modality))
        return names


class SearchParameters(BaseModel, frozen=True):
    """Parameters of a search of a codec's lists for up to ``k`` results.

    ``nprobe`` cells are searched, and ``rerank`` candidates are scored exactly; 0 returns the
    codes' own scores.
    """

    nprobe: int
    rerank: int
    k: int = 10

    def candidates(self, k: int) -> int:
        """Number of candidates to take from the codes for ``k`` results."""
        return max(self.rerank, 4 * k) if self.rerank else k


class Tuning(BaseModel, frozen=True):
    """When and how search parameters were chosen.

    ``n`` is the number of vectors then, ``target`` the recall they were to reach, ``reached`` the
    lowest that they did reach, ``rerank`` whether candidates were to be scored exactly.
    """

    n: int
    target: float
    reached: float
    rerank: bool


class IndexSummary(ModelIdentity, frozen=True):
    """Content of `index.json`: ``n`` samples with vectors of width ``d``; all of them are in the
    image index, and those of runs with captions in the text index.

    The model is the one that made the vectors, as these say themselves.
    By codec and modality: ``search`` holds parameters for few results and for many, and ``tuned``
    how they were chosen; ``recall`` is measured at 1, 10 and 100. ``drift`` is how far vectors lie
    from their cells' centres and ``imbalance`` how unequal the cells are, both relative to the
    codec's training (1 = as then).
    """

    kind: str
    n: int
    d: int
    runs: tuple[IndexRun, ...]
    versions: Mapping[str, str]
    search: Mapping[str, Mapping[str, tuple[SearchParameters, ...]]] = {}
    tuned: Mapping[str, Mapping[str, Tuning]] = {}
    recall: Mapping[str, Mapping[str, Recall]] = {}
    drift: Mapping[str, Mapping[str, float]] = {}
    imbalance: Mapping[str, Mapping[str, float]] = {}
    metric: str = METRIC

    def headline(self) -> dict[str, Any]:
        """A summary for people, without the list of segments."""
        shown = self.model_dump(mode="json", exclude={"runs", "tuned"})
        shown = {name: value for name, value in shown.items() if value != {}}
        segments = sum(not s.dropped for run in self.runs for s in run.segments)
        return shown | {"runs": len(self.runs), "segments": segments, "codecs": self.codecs()}

    def parameters(self, codec: str, modality: Modality, k: int) -> SearchParameters:
        """Parameters recorded for ``k`` results."""
        recorded = self.search[codec][modality]
        return next((one for one in recorded if k <= one.k), recorded[-1])

    def codecs(self) -> list[str]:
        return sorted({run.codec for run in self.runs if run.codec})

    @classmethod
    def read(cls, index_dir: Path) -> IndexSummary:
        return read_summary(cls, index_dir / "index.json")

    def write(self, index_dir: Path) -> None:
        write_text(index_dir / "index.json", self.model_dump_json() + "\n")


def read_summary(kind: type[Summary], path: Path) -> Summary:
    """Read `index.json` or `codec.json`.

    Raises :class:`IndexMismatchError` for one that lacks what this version needs to know.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        lacking = ", ".join(
            sorted({str(found["loc"][0]) for found in error.errors() if found["loc"]})
        )
        raise IndexMismatchError(
            f"{path} is of another version of LAION Assets ({lacking or 'no JSON'}): build it again"
        ) from error


def samples_of(headline: Mapping[str, Any]) -> int:
    """How many samples an index holds, from its :meth:`IndexSummary.headline`."""
    return int(headline["n"])


def index_path(folder: Path, modality: Modality) -> Path:
    return folder / f"{modality}.index"


def vectors_name(kind: str, modality: Modality) -> str:
    return f"{modality}.index" if kind in FLAT_KINDS else f"{modality}.lists"


def truth_name(modality: Modality) -> str:
    return f"{modality}_truth.npz"


def found_name(modality: Modality) -> str:
    return f"{modality}_found.npz"


def codec_dir(index_dir: Path, codec: str) -> Path:
    return index_dir / "codec" / codec


def versions() -> dict[str, str]:
    import faiss

    return {"faiss": faiss.__version__, "laion-assets": __version__}


def new_index(kind: str, d: int) -> Any:
    """Return an empty faiss ``IndexIDMap2`` over inner product, whose ids are row numbers."""
    import faiss

    if kind == "flat":
        return faiss.IndexIDMap2(faiss.IndexFlatIP(d))
    if kind == "flat_fp16":
        half = faiss.ScalarQuantizer.QT_fp16
        return faiss.IndexIDMap2(faiss.IndexScalarQuantizer(d, half, faiss.METRIC_INNER_PRODUCT))
    raise ValueError(f"unknown kind of flat index {kind!r}")


def write_index(index: Any, path: Path) -> None:
    import faiss

    with atomic_path(path) as beside:
        faiss.write_index(index, str(beside))


def map_index(path: Path) -> Any:
    """Open a faiss index with its vectors memory-mapped, for searching and not for adding."""
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def write_ids(index_dir: Path, batches: Iterable[pa.Table]) -> npt.NDArray[np.int64]:
    """Publish `ids.parquet` and `ids.npy`; return the SAMPLE_IDs."""
    samples = [np.empty(0, dtype=np.int64)]
    with TableWriter(index_dir / "ids.parquet", INDEX_IDS) as writer:
        for batch in batches:
            writer.write(batch.cast(INDEX_IDS), row_group=_IDS_GROUP_ROWS)
            samples.append(batch["SAMPLE_ID"].to_numpy())
    ids = np.concatenate(samples)
    write_sample_ids(index_dir, ids)
    return ids


def find_sample(index_dir: Path, key: SegmentKey, sample_id: int) -> int | None:
    """The index's row of a segment's sample; None if the index does not have it."""
    first = 0
    for run in IndexSummary.read(index_dir).runs:
        start = 0
        for entry in run.segments:
            if (entry.crawl, entry.segment) == (key.crawl, key.segment) and not entry.dropped:
                path = index_dir / run.folder / "ids.npy"
                ids = np.load(path, mmap_mode="r", allow_pickle=False)
                found = np.flatnonzero(ids[start : start + entry.rows] == sample_id)
                if len(found):
                    return first + start + int(found[0])
            start += entry.rows
        first += run.rows
    return None


def write_sample_ids(folder: Path, ids: npt.NDArray[np.int64]) -> None:
    write_array(folder / "ids.npy", ids)


def read_sample_ids(folder: Path, run: IndexRun) -> npt.NDArray[np.int64]:
    """SAMPLE_IDs of an index run's rows, memory-mapped; ``folder`` is the run's.

    Raises :class:`IndexMismatchError` if they are not as many as `index.json` says.
    """
    ids: npt.NDArray[np.int64] = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
    if len(ids) != run.rows:
        raise IndexMismatchError(f"{folder} has {len(ids)} ids, but its index.json says {run.rows}")
    return ids


def link_file(source: Path, target: Path) -> None:
    """Put ``source``'s content at ``target``, by a hard link where the file system can.

    Published files are never written to, so two folders may share one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    link_or_copy(source, target)


def link_codec(source: Path, index_dir: Path, codec: str) -> None:
    """Put a codec's files into an index folder."""
    for path in sorted(source.iterdir()):
        if not path.name.startswith((".", "_")):
            link_file(path, codec_dir(index_dir, codec) / path.name)
