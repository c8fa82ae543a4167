"""The codec that all segments' indices share: coarse cells and vector codes, trained once.

A codec is a folder: ``codec.json``, ``image.index`` and ``text.index`` (trained faiss indices
without vectors) and ``image_queries.npy``, ``text_queries.npy`` (the queries that recall is
measured with). If there were too few captions to train on, there is nothing of texts. Vectors
encoded by one codec fit into one index, whoever encoded them and when.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import field_validator

from laion_assets.clip.identity import ModelIdentity
from laion_assets.files import sha256_file, write_json
from laion_assets.knn.files import (
    IndexMismatchError,
    IndexSummary,
    index_path,
    read_summary,
    versions,
    write_index,
)
from laion_assets.knn.options import FLAT_KINDS, IndexOptions
from laion_assets.knn.sampling import Floats, gather, write_queries
from laion_assets.knn.subset import (
    MODALITIES,
    Modality,
    SubsetPart,
    modalities_of,
    subset_parts,
)

logger = logging.getLogger(__name__)

_PER_CELL: Final = 50
"""Training vectors per cell; faiss wants at least 39."""
_ITERATIONS: Final = 10
_ROW_BYTES: Final = 8
"""The row number beside each code."""
_FEWEST: Final = 256
"""Training vectors that a codec needs at least: product quantisation has as many centres."""
_LEAST_RESIDUAL: Final = 1e-3
"""How far from 1 a cosine may be because vectors are stored as float16. A codec's residual is no
less, or drift relative to it would measure rounding."""
_PQ_BYTES: Final = (64, 48, 32, 24, 16, 12, 8)
_HNSW_FROM: Final = 1_000
"""Number of cells from which their centres are found through a graph, not one by one."""
_HELD_OUT: Final = 20_000
_MOST_PROBES_ENCODING: Final = 64


class TooFewVectorsError(ValueError):
    """There are not enough vectors to train a codec; the message gives the numbers."""


class CodecSummary(ModelIdentity, frozen=True):
    """Content of `codec.json`; the model is the one that made the vectors it was trained on.

    ``residual`` and ``imbalance`` are measured on vectors held out of training: one minus the mean
    cosine with the cell's centre, and how unequal the cells are (1 = equal).
    """

    id: str = ""
    kind: str
    factory: str
    d: int
    cells: int
    code_size: int
    vectors: int
    trained_on: int
    residual: Mapping[str, float]
    imbalance: Mapping[str, float]
    versions: Mapping[str, str]

    @field_validator("residual")
    @classmethod
    def _no_rounding(cls, residual: Mapping[str, float]) -> Mapping[str, float]:
        return {modality: max(_LEAST_RESIDUAL, value) for modality, value in residual.items()}

    @property
    def modalities(self) -> Sequence[Modality]:
        """What it is for: images alone if there were too few captions to train on."""
        return [modality for modality in MODALITIES if modality in self.residual]


@dataclass(frozen=True)
class Choice:
    """A faiss index type with its number of cells and its factory string."""

    kind: str
    cells: int
    factory: str


def choose(options: IndexOptions, *, vectors: int, sample: int, d: int) -> Choice:
    """Choose the inverted lists for ``vectors`` of width ``d``, trained on ``sample`` of them.

    The number of cells is about four times the square root of the number of vectors. The codes are
    what fits `memory_gb`. With re-ranking, one bit per dimension is enough (RaBitQ, arXiv
    2405.12497) and fastest; without it, one byte is used where there is room. Raises
    :class:`TooFewVectorsError`, and ``ValueError`` for a kind that needs no training.
    """
    if options.kind in FLAT_KINDS:
        raise ValueError(f"an index of kind {options.kind} needs no codec")
    cells = options.cells or 2 ** round(math.log2(4 * math.sqrt(vectors)))
    while options.cells is None and cells * 39 > sample:
        cells //= 2
    if cells < 1 or not _enough(sample, cells):
        raise TooFewVectorsError(f"{sample} vectors are too few to train {cells} cells")
    room = options.memory_gb * 1e9 / vectors - _ROW_BYTES
    kind = options.kind
    if kind == "auto":
        if not options.rerank and room >= d:
            kind = "ivf_sq8"
        else:
            kind = "ivf_rabitq" if room >= d / 8 + 8 else "ivf_pq"
    centres = f"IVF{cells}_HNSW32" if cells >= _HNSW_FROM else f"IVF{cells}"
    if kind == "ivf_sq8":
        return Choice(kind, cells, f"{centres},SQ8")
    if kind == "ivf_rabitq":
        return Choice(kind, cells, f"RR{d},{centres},RaBitQ")
    fitting = [m for m in _PQ_BYTES if m <= max(room, _PQ_BYTES[-1]) and m <= d]
    m = fitting[0] if fitting else 1
    # np: not ordered for Hamming distances, which are unused and take longest to train.
    return Choice(kind, cells, f"OPQ{m}_{d // m * m},{centres},PQ{m}x8np")


def _enough(sample: int, cells: int) -> bool:
    return sample >= max(cells, _FEWEST)


def train_codec(
    subsets: Sequence[Path],
    out: Path,
    options: IndexOptions,
    *,
    model: ModelIdentity,
) -> CodecSummary:
    """Train a codec for the vectors of `filtered_subset` folders, all of ``model``, into ``out``.

    The sample is drawn evenly from all folders, with a seed. If too few images have captions, the
    codec is for images alone. Memory: the sample as float32, one modality at a time. Raises
    :class:`TooFewVectorsError`, and :class:`IndexMismatchError` if the vectors differ in width.
    """
    of = _by_modality(subsets)
    n = sum(part.rows() for part in of["image"])
    widths = {part.vectors(modality).shape[1] for modality, parts in of.items() for part in parts}
    if len(widths) > 1:
        raise IndexMismatchError(f"vectors of different widths: {sorted(widths)}")
    if not n:
        raise TooFewVectorsError("there are no vectors to train a codec on")
    (d,) = widths
    usable = min(n - _held_out(n), options.train_vectors)
    vectors = options.vectors or 4 * n
    choice = choose(options, vectors=vectors, sample=usable, d=d)
    take = min(usable, _PER_CELL * choice.cells)
    logger.info(f"{choice.factory} for {vectors:,} vectors, trained on {take:,} of {n:,}")
    residual, imbalance, code_size = {}, {}, 0
    for modality, parts in of.items():
        rows = sum(part.rows() for part in parts)
        held_out = _held_out(rows)
        # Where many images have no captions, the texts are fewer.
        if not _enough(min(usable, rows - held_out), choice.cells):
            logger.warning(
                f"the codec is for images alone: {rows:,} of {n:,} have captions, too few to train "
                f"{choice.cells:,} cells. Indices keep vectors of subsets with captions as they are"
            )
            continue
        own = min(take, rows - held_out)
        order = np.random.default_rng(options.train_seed).permutation(rows)
        training, rest = np.sort(order[:own]), np.sort(order[own : own + held_out])
        index = _trained(choice, d, gather(parts, modality, training), options.train_seed)
        write_index(index, index_path(out, modality))
        encoder = Encoder(index)
        code_size = encoder.ivf.code_size
        near, cells = encoder.assign(gather(parts, modality, rest))
        residual[modality] = round(1 - float(near.mean()), 6)
        imbalance[modality] = round(unequal(np.bincount(cells, minlength=choice.cells)), 4)
        logger.info(
            f"{modality} codec trained: mean cosine with the centres {1 - residual[modality]:.3f}"
        )
        write_queries(parts, modality, out, options)
    summary = CodecSummary(
        kind=choice.kind,
        factory=choice.factory,
        d=d,
        cells=choice.cells,
        code_size=code_size,
        vectors=vectors,
        trained_on=take,
        **model.identity.model_dump(),
        residual=residual,
        imbalance=imbalance,
        versions=versions(),
    )
    digest = hashlib.sha256()
    for path in codec_files(out):
        digest.update(sha256_file(path).encode())
    digest.update(summary.model_dump_json().encode())
    summary = summary.model_copy(update={"id": digest.hexdigest()[:16]})
    write_json(out / "codec.json", summary.model_dump(mode="json"))
    return summary


def _held_out(rows: int) -> int:
    """Number of vectors that are kept out of training, to measure the codec on."""
    return min(_HELD_OUT, rows // 10)


def _by_modality(subsets: Sequence[Path]) -> dict[Modality, list[SubsetPart]]:
    """The parts that have vectors of each modality; without texts if no sample has one."""
    found: dict[Modality, list[SubsetPart]] = {modality: [] for modality in MODALITIES}
    for parts in map(subset_parts, subsets):
        for modality in modalities_of(parts):
            found[modality] += parts
    if not any(part.rows() for part in found["text"]) and any(p.rows() for p in found["image"]):
        del found["text"]
    return found


def codec_files(folder: Path) -> list[Path]:
    """All files of a codec's folder except `codec.json`."""
    paths = [index_path(folder, modality) for modality in MODALITIES] + [
        folder / f"{modality}_queries.npy" for modality in MODALITIES
    ]
    return [path for path in paths if path.exists()]


def _trained(choice: Choice, d: int, sample: Floats, seed: int) -> Any:
    import faiss

    index = faiss.index_factory(d, choice.factory, faiss.METRIC_INNER_PRODUCT)
    ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    chain = _transforms(index)
    for transform in chain:
        if not transform.is_trained:
            transform.train(sample)
    for transform in chain:
        sample = transform.apply(sample)
    kmeans = faiss.Kmeans(
        sample.shape[1],
        choice.cells,
        niter=_ITERATIONS,
        seed=seed + 1,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_PER_CELL,
    )
    kmeans.train(sample)
    # Threads that build the graph race: a single one gives the same graph each time.
    with _one_thread():
        ivf.quantizer.add(kmeans.centroids)
    ivf.train(sample)
    index.is_trained = True
    return index


@contextmanager
def _one_thread() -> Iterator[None]:
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _transforms(index: Any) -> list[Any]:
    import faiss

    index = faiss.downcast_index(index)
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    return [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]


class Encoder:
    """A trained index taken apart: rotation, cells, codes. Several threads may search it."""

    def __init__(self, index: Any) -> None:
        import faiss

        self._index = index  # owns what the rest point into
        self.ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
        self._chain = _transforms(index)
        self._centres = faiss.downcast_index(self.ivf.quantizer)
        self._graph = isinstance(self._centres, faiss.IndexHNSW)

    def rotated(self, vectors: Floats) -> Floats:
        for transform in self._chain:
            vectors = transform.apply(vectors)
        return np.ascontiguousarray(vectors)

    def cells(self, rotated: Floats, nprobe: int) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The ``nprobe`` nearest cells of rotated vectors ``(n, d)``.

        Returns cosines with their centres and cell numbers, both ``(n, nprobe)``.
        """
        import faiss

        parameters = None
        if self._graph:
            parameters = faiss.SearchParametersHNSW(efSearch=ef_search(nprobe))
        scores, numbers = self._centres.search(rotated, nprobe, params=parameters)
        return scores, numbers

    def assign(self, vectors: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Each vector's cell: cosines with its centre, and its number, both ``(n,)``."""
        scores, numbers = self.cells(self.rotated(vectors), 1)
        return scores[:, 0], numbers[:, 0]

    def add(self, vectors: Floats, first_row: int) -> Floats:
        """Encode and add vectors, numbered from ``first_row``; return cosines with the centres."""
        import faiss

        rotated = self.rotated(vectors)
        scores, numbers = self.cells(rotated, 1)
        rows = np.arange(first_row, first_row + len(rotated), dtype=np.int64)
        self.ivf.add_core(
            len(rotated), faiss.swig_ptr(rotated), faiss.swig_ptr(rows), faiss.swig_ptr(numbers)
        )
        return scores[:, 0]

    def over(self, lists: Any) -> Any:
        """Return a faiss IVF index over other lists that shares this one's cells and codes."""
        import faiss

        ivf, metric = self.ivf, faiss.METRIC_INNER_PRODUCT
        other: Any
        if isinstance(ivf, faiss.IndexIVFRaBitQ):
            other = faiss.IndexIVFRaBitQ(ivf.quantizer, ivf.d, ivf.nlist, metric)
            other.rabitq, other.qb = ivf.rabitq, ivf.qb
        elif isinstance(ivf, faiss.IndexIVFPQ):
            shape = (ivf.pq.M, ivf.pq.nbits)
            other = faiss.IndexIVFPQ(ivf.quantizer, ivf.d, ivf.nlist, *shape, metric)
            other.pq = ivf.pq
        else:
            kind = ivf.sq.qtype
            other = faiss.IndexIVFScalarQuantizer(ivf.quantizer, ivf.d, ivf.nlist, kind, metric)
            other.sq = ivf.sq
        other.by_residual, other.is_trained = ivf.by_residual, True
        other.replace_invlists(lists, False)
        other.ntotal = lists.compute_ntotal()
        return other


def ef_search(nprobe: int) -> int:
    """Breadth of the search for ``nprobe`` cells in the graph of their centres."""
    return max(_MOST_PROBES_ENCODING, 2 * nprobe)


@dataclass(frozen=True)
class Codec:
    """A codec's folder, opened."""

    folder: Path
    summary: CodecSummary

    @classmethod
    def open(cls, folder: Path) -> Codec:
        return cls(folder, read_summary(CodecSummary, folder / "codec.json"))

    @property
    def id(self) -> str:
        return self.summary.id

    def encoder(self, modality: Modality) -> Encoder:
        """Return a new encoder without vectors."""
        import faiss

        return Encoder(faiss.read_index(str(index_path(self.folder, modality))))

    def queries(self, modality: Modality) -> Floats:
        """Queries that recall over this modality's index is measured with, ``(q, d)``."""
        path = self.folder / f"{modality}_queries.npy"
        queries: Floats = np.load(path, allow_pickle=False).astype(np.float32)
        return queries


def unequal(sizes: npt.NDArray[np.integer[Any]]) -> float:
    """Ratio of the vectors that a probe meets in cells of these sizes to those in equal cells.

    The unevenness that a small sample has by chance is taken off.
    """
    total = float(sizes.sum())
    if not total:
        return 1.0
    squares = float((sizes.astype(np.float64) ** 2).sum())
    return max(1.0, len(sizes) * (squares - total) / total**2)


def advice(summary: IndexSummary, options: IndexOptions) -> list[str]:
    """Reasons to train a codec, or to train it again; empty if there are none."""
    flat = sum(run.n for run in summary.runs if not run.codec)
    reasons = []
    if options.kind not in FLAT_KINDS and flat > options.flat_below:
        reasons.append(
            f"{flat:,} vectors are searched one by one, more than {options.flat_below:,}"
        )
    if flat and summary.codecs():
        reasons.append(f"{flat:,} vectors have not been encoded")
    if len(summary.codecs()) > 1:
        reasons.append(f"segments are encoded by {len(summary.codecs())} codecs")
    for what, found, most in (
        ("drift", summary.drift, options.max_drift),
        # The cells of a single segment are unequal because of its topics.
        ("imbalance", summary.imbalance if len(summary.runs) > 1 else {}, options.max_imbalance),
    ):
        reasons += [
            f"{modality} {what} {value:.2f} of codec {codec} is over {most}"
            for codec, by_modality in found.items()
            for modality, value in by_modality.items()
            if value > most
        ]
    return reasons
