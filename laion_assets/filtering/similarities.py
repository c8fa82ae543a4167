"""Distributions of similarities: of real pairs, and of shuffled ones as what a mismatch looks like.

A cosine has a meaning for one model only. Which of a model's cosines mean that image and text
belong together, the pairs themselves tell: each image with another's text of the same segment is a
mismatch, and a threshold is known by the share of these that it lets through.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.files import write_json
from laion_assets.layout import SIMILARITY_FILES

PER_UNIT: Final = 1_000
"""Bins per unit of cosine: a threshold is proposed to three decimals."""
LET_THROUGH: Final = (0.01, 0.02, 0.05, 0.10)
"""Shares of shuffled pairs for which thresholds are proposed."""
PROPOSED: Final = 0.02
"""The share whose threshold is proposed first: that of the shipped model's."""
FEWEST: Final = 1_000
"""Number of shuffled pairs below which a share of them says little."""

_FILE: Final = "_similarities_{:05d}.json"
_SHUFFLED_OF_FEW: Final = 20_000
"""Shuffled pairs to make of few rows, each image of which goes with several texts."""
_ROWS_AT_ONCE: Final = 256
"""Rows that fit into the processor's caches, where the work is several times as fast."""
_SEED: Final = 400_000_000

Counts = NDArray[np.int64]


class NotCalibratedError(ValueError):
    """There is nothing to learn a threshold from; the message says why."""


class Proposal(NamedTuple):
    """A threshold, and the shares of shuffled and of real pairs at or above it."""

    threshold: float
    shuffled: float
    real: float


def _no_counts() -> Counts:
    return np.zeros(2 * PER_UNIT + 1, np.int64)


@dataclass
class Similarities:
    """Counts of real and of shuffled pairs by cosine, int64 ``(2 * PER_UNIT + 1,)`` each.

    Bin ``i`` holds cosines from ``i / PER_UNIT - 1`` to below the next bin's.
    """

    real: Counts = field(default_factory=_no_counts)
    shuffled: Counts = field(default_factory=_no_counts)

    def add(
        self,
        similarity: NDArray[np.float64],
        rows: pa.Table,
        images: NDArray[Any],
        texts: NDArray[Any],
    ) -> None:
        """Count rows of the given similarities, ``(n,)``, and shuffle them among themselves.

        ``images``, ``texts``: their vectors, ``(n, dim)`` each.
        """
        self.real += _binned(similarity)
        for image, text in _shuffled(rows):
            self.shuffled += _binned(cosines(images, texts, image, text))

    def merge(self, other: Similarities) -> None:
        self.real += other.real
        self.shuffled += other.shuffled

    def at(self, threshold: float) -> Proposal:
        """The shares at or above a threshold, which counts to a bin's width."""
        first = int(_bins(np.array([threshold]))[0])
        shares = (_share(counts[first:], counts) for counts in (self.shuffled, self.real))
        return Proposal(threshold, *shares)

    def propose(self, let_through: float) -> Proposal:
        """The lowest threshold that lets at most this share of shuffled pairs through.

        Raises :class:`NotCalibratedError` if there are no shuffled pairs.
        """
        total = int(self.shuffled.sum())
        if not total:
            raise NotCalibratedError(
                "there are no shuffled pairs: at least two images with different texts are needed"
            )
        above = np.cumsum(self.shuffled[::-1])[::-1]
        enough = np.flatnonzero(above <= let_through * total)
        # The last bin holds a cosine of 1; beyond it there is nothing.
        return self.at(edge(int(enough[0])) if len(enough) else 1.0)

    def proposals(self) -> list[Proposal]:
        """Thresholds for the shares of :data:`LET_THROUGH`."""
        return [self.propose(share) for share in LET_THROUGH]

    def write(self, folder: Path, part: int) -> None:
        """Write the counts of a part of scores beside it."""
        write_json(
            file_of(folder, part),
            {"real": _sparse(self.real), "shuffled": _sparse(self.shuffled)},
        )

    @classmethod
    def read(cls, folders: Iterable[Path]) -> Self:
        """Add up the counts of all parts in folders of scores.

        Raises :class:`NotCalibratedError` for a folder without.
        """
        total = cls()
        for folder in folders:
            paths = files_in(folder)
            if not paths:
                raise NotCalibratedError(
                    f"{folder} has no {SIMILARITY_FILES}: score the pairs again, or name the folder"
                    " of their embeddings"
                )
            for path in paths:
                found = json.loads(path.read_text(encoding="utf-8"))
                for counts, name in ((total.real, "real"), (total.shuffled, "shuffled")):
                    first = found[name]["first"]
                    values = np.array(found[name]["counts"], np.int64)
                    counts[first : first + len(values)] += values
        return total


def file_of(folder: Path, part: int) -> Path:
    """Place of the counts of a part in a folder of scores."""
    return folder / _FILE.format(part)


def files_in(folder: Path) -> list[Path]:
    """The files of counts in a folder of scores, sorted."""
    return sorted(folder.glob(SIMILARITY_FILES))


def edge(number: int) -> float:
    """Lowest cosine of a bin."""
    return (number - PER_UNIT) / PER_UNIT


def cosines(
    images: NDArray[Any],
    texts: NDArray[Any],
    image: Sequence[int] | NDArray[np.int64] | None = None,
    text: Sequence[int] | NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Cosine of each row's two vectors, float64 (n,), computed from the vectors as stored.

    ``image``, ``text``: the rows to take of either, by default all in order. Rounding to float16
    leaves vectors slightly off unit length, so their plain product is not a cosine and may exceed
    1. Both are therefore normalised in float64 first. A row of zeros has the cosine 0.
    """
    result = np.empty(len(images) if image is None else len(image), dtype=np.float64)
    for start in range(0, len(result), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        a = np.asarray(images[rows if image is None else image[rows]], dtype=np.float64)
        b = np.asarray(texts[rows if text is None else text[rows]], dtype=np.float64)
        lengths = np.sqrt(np.vecdot(a, a) * np.vecdot(b, b))
        smallest = np.finfo(np.float64).tiny
        result[rows] = np.vecdot(a, b) / np.maximum(lengths, smallest)
    return np.clip(result, -1.0, 1.0)


def _shuffled(rows: pa.Table) -> Iterable[tuple[Counts, Counts]]:
    """Rows of images and of the texts to pair them with, none with its own or an equal one.

    A turn of a random order pairs every row with another. The order is random because neighbours
    are often from one page and about one thing. It is the same each time, as all bytes are.
    """
    n = len(rows)
    if n < 2:
        return
    order = np.random.default_rng(_SEED).permutation(n)
    text_of, image_of = _numbered(rows["text"]), _numbered(rows["sha256"])
    for turn in range(1, min(n, 1 + max(1, _SHUFFLED_OF_FEW // n))):
        image, text = order, np.roll(order, turn)
        other = (text_of[image] != text_of[text]) & (image_of[image] != image_of[text])
        yield image[other], text[other]


def _numbered(column: pa.ChunkedArray) -> Counts:
    """A number for each row, equal where the values are."""
    codes: Counts = column.combine_chunks().dictionary_encode().indices.to_numpy(False)
    return codes


def _bins(values: NDArray[np.float64]) -> Counts:
    # An edge belongs to its own bin, although 0.29 * 1000 is less than 290 in floating point.
    numbers: Counts = np.floor(values * PER_UNIT + 1e-9).astype(np.int64) + PER_UNIT
    return numbers


def _binned(values: NDArray[np.float64]) -> Counts:
    counts: Counts = np.bincount(_bins(values), minlength=2 * PER_UNIT + 1)
    return counts


def _share(some: Counts, of_all: Counts) -> float:
    return float(some.sum()) / max(1, int(of_all.sum()))


def _sparse(counts: Counts) -> dict[str, Any]:
    """The counts from the first that is not 0 to the last."""
    filled = np.flatnonzero(counts)
    first, end = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    return {"first": first, "counts": counts[first:end].tolist()}
