"""What searches of one index run find for the codec's queries, kept beside the run.

The candidates of a whole index are the best of those of its runs, as its truth is the best of
theirs. Recall of a whole index that grew by a segment is thus measured by searching that segment.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laion_assets.files import atomic_path
from laion_assets.knn.files import IndexRun, SearchParameters
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.subset import Modality

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """Candidates of each query in the order of their codes, best first, ``(q, depth)`` each.

    ``coded`` are the scores of the codes and ``exact`` the true ones; -inf where there is none.
    """

    coded: Floats
    exact: Floats

    @classmethod
    def best(cls, found: Sequence[Found], depth: int) -> Found:
        """The ``depth`` best by their codes of several index runs' candidates."""
        coded = np.concatenate([one.coded for one in found], axis=1)
        exact = np.concatenate([one.exact for one in found], axis=1)
        if coded.shape[1] > depth:
            best = np.argpartition(-coded, depth - 1, axis=1)[:, :depth]
            coded, exact = (np.take_along_axis(one, best, axis=1) for one in (coded, exact))
        order = np.argsort(-coded, axis=1, kind="stable")
        return cls(*(np.take_along_axis(one, order, axis=1) for one in (coded, exact)))


def write_found(
    path: Path, parameters: Sequence[SearchParameters], n: int, found: Sequence[Found]
) -> None:
    """Publish what was found with each of some parameters in a run of ``n`` live rows."""
    arrays: dict[str, Any] = {
        f"{name}_{number}": value
        for number, one in enumerate(found)
        for name, value in (("coded", one.coded), ("exact", one.exact))
    }
    arrays["about"] = np.array(_about(parameters, n))
    with atomic_path(path) as beside, beside.open("wb") as out:
        np.savez(out, **arrays)


def read_found(path: Path, parameters: Sequence[SearchParameters], n: int) -> list[Found] | None:
    """What was found with these parameters among these rows; None if that is not known.

    A run's rows only ever become fewer, so that their number says which they are.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["about"]) != _about(parameters, n):
                return None
            return [
                Found(arrays[f"coded_{number}"], arrays[f"exact_{number}"])
                for number in range(len(parameters))
            ]
    except (FileNotFoundError, zipfile.BadZipFile):
        return None


def search_run(
    index: OpenIndex, run: IndexRun, modality: Modality, parameters: Sequence[SearchParameters]
) -> list[Found]:
    """Search one index run for the codec's queries with each of some parameters."""
    queries = index.codecs[run.codec].queries(modality)
    found = []
    for one in parameters:
        coded, rows = index.candidates(queries, one.candidates(one.k), modality, [run], one.nprobe)
        found.append(Found(coded, index.exact(queries, rows, modality)))
    return found


def _about(parameters: Sequence[SearchParameters], n: int) -> str:
    return f"{n} rows: {'; '.join(one.model_dump_json() for one in parameters)}"
