"""What an index reads of a `filtered_subset` folder: its parts and their vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

Modality = Literal["image", "text"]
MODALITIES: Final[Sequence[Modality]] = ("image", "text")
_FOLDER: Final = {"image": "img_emb", "text": "text_emb"}

Vectors = npt.NDArray[Any]


class SubsetError(ValueError):
    """A subset's rows and vectors do not belong together; the message says where."""


@dataclass(frozen=True)
class SubsetPart:
    """One ``part-NNNNN.parquet`` and the vectors of the same number."""

    folder: Path
    number: int

    @property
    def parquet(self) -> Path:
        return part_path(self.folder, self.number)

    def rows(self) -> int:
        return int(pq.read_metadata(self.parquet).num_rows)

    def sample_ids(self) -> npt.NDArray[np.int64]:
        """``(rows,)``."""
        ids: npt.NDArray[np.int64] = pq.read_table(
            self.parquet, columns=["SAMPLE_ID"], partitioning=None
        )["SAMPLE_ID"].to_numpy()
        return ids

    def vectors(self, modality: Modality) -> Vectors:
        """``(rows, d)`` float16, memory-mapped.

        Raises :class:`SubsetError` if there are not as many as the parquet has rows.
        """
        name = _FOLDER[modality]
        path = self.folder / name / f"{name}_{self.number:05d}.npy"
        if not path.exists():
            raise SubsetError(f"{self.parquet} has no {modality} vectors at {path}")
        vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.ndim != 2 or len(vectors) != self.rows():
            raise SubsetError(
                f"{path} has the shape {vectors.shape}, but {self.parquet.name} has "
                f"{self.rows()} rows"
            )
        return vectors


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def subset_parts(folder: Path) -> list[SubsetPart]:
    """The folder's parts by number. A folder that does not exist raises ``FileNotFoundError``."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no subset at {folder}")
    return [
        SubsetPart(folder, int(path.stem.removeprefix("part-")))
        for path in sorted(folder.glob("part-*.parquet"))
    ]


def blocks(vectors: Vectors, rows: int = 65_536) -> Iterator[npt.NDArray[np.float32]]:
    """The vectors as contiguous float32, a bounded number of rows at a time."""
    for start in range(0, len(vectors), rows):
        yield np.ascontiguousarray(vectors[start : start + rows], dtype=np.float32)
