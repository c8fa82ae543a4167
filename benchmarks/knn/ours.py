"""Ours, step by step: ``python -m benchmarks.knn.ours STEP FOLDER …``; each prints a JSON line.

Seconds are CPU time of all threads together.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from laion_assets.clip.identity import ModelIdentity
from laion_assets.knn.build import build_index
from laion_assets.knn.codec import Codec, train_codec
from laion_assets.knn.files import SearchParameters
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.subset import MODALITIES, SubsetPart
from laion_assets.layout import SegmentKey

MODEL: Final = ModelIdentity(model="made", model_version="0")


def options(folder: Path) -> IndexOptions:
    values = json.loads((folder / "options.json").read_text())
    return IndexOptions(**values)


def subset(folder: Path, segment: str) -> Path:
    return folder / "subsets" / segment


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds[what] = time.process_time() - started


def train(folder: Path, *segments: str) -> dict[str, Any]:
    codec = _empty(folder / "codec")
    seconds: dict[str, float] = {}
    with timed(seconds, "train"):
        summary = train_codec(
            [subset(folder, segment) for segment in segments],
            codec,
            options(folder),
            model=MODEL,
        )
    return seconds | {"factory": summary.factory}


def encode(folder: Path, *segments: str) -> dict[str, Any]:
    """Build the segments' own indices."""
    codec = Codec.open(folder / "codec")
    seconds: dict[str, float] = {}
    with timed(seconds, "encode"):
        for segment in segments:
            build_index(
                subset(folder, segment),
                _empty(folder / "segments" / segment),
                options(folder),
                model=MODEL,
                codec=codec,
            )
    return seconds


def merge(folder: Path, previous: str, out: str, version: str, *segments: str) -> dict[str, Any]:
    """Merge the segments into the index ``out``, starting from ``previous`` (``-``: from nothing).

    Segments named with a star have the version ``version``, the others version 0.
    """
    seconds: dict[str, float] = {}
    with timed(seconds, "merge"):
        summary = merge_indices(
            [
                SegmentIndex(
                    SegmentKey.parse(name.strip("*")), version if name.endswith("*") else "0"
                )
                for name in segments
            ],
            lambda key: folder / "segments" / str(key),
            _empty(folder / out),
            options(folder),
            lambda key: subset(folder, str(key)),
            previous=None if previous == "-" else folder / previous,
        )
    kept = summary.headline()
    return seconds | {name: kept[name] for name in ("n", "runs", "search", "recall")}


def query(folder: Path, name: str, queries: str) -> dict[str, Any]:
    """Run each query alone, on one thread."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = OpenIndex(folder / name, lambda key: subset(folder, str(key)))
    vectors = np.load(queries)
    chosen = next(iter(index.summary.search.values()))["image"][0]
    settings = [
        SearchParameters(nprobe=nprobe, rerank=rerank)
        for nprobe in (8, 16, 32, 64, 128, 256)
        for rerank in (0, 50, 100, 200, 400)
    ]
    found, rates = [], []
    for parameters in [chosen, *settings]:
        for vector in vectors[:50]:
            index.nearest(vector[None], 10, "image", parameters=parameters)
        started = time.process_time()
        rows = [
            index.nearest(vector[None], 10, "image", parameters=parameters)[1] for vector in vectors
        ]
        seconds = time.process_time() - started
        found.append(np.concatenate(rows))
        rates.append([parameters.model_dump(), len(vectors) / seconds])
    # The rows are numbered as if the segments' parts followed one another.
    np.save(folder / f"{name}.found.npy", _as_given(index, np.stack(found)))
    files = [path for path in (folder / name).rglob("*") if "image" in path.name]
    size = sum(path.stat().st_size for path in files if path.suffix in (".lists", ".index"))
    return {"rates": rates, "bytes": size, "cold_ms": _cold(folder, name, vectors[:200])}


def _as_given(index: OpenIndex, rows: Any) -> Any:
    """Convert an index' row numbers to those of the embeddings' folder, with a file per segment."""
    starts: dict[str, int] = {}
    at = 0
    sizes = {str(s.key): s.rows for run in index.summary.runs for s in run.segments}
    for segment in sorted(sizes):
        starts[segment] = at
        at += sizes[segment]
    new = np.empty(sum(run.rows for run in index.summary.runs), dtype=np.int64)
    first = 0
    for run in index.summary.runs:
        for rows_of in run.segments:
            new[first : first + rows_of.rows] = starts[str(rows_of.key)] + np.arange(rows_of.rows)
            first += rows_of.rows
    return np.where(rows >= 0, new[rows], -1)


def _cold(folder: Path, name: str, vectors: Any) -> float:
    """Median milliseconds per query when nothing of index and vectors is in memory."""
    for path in [*(folder / name).rglob("*"), *(folder / "subsets").rglob("*.npy")]:
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    index = OpenIndex(folder / name, lambda key: subset(folder, str(key)))
    times = []
    for vector in vectors:
        started = time.perf_counter()
        index.nearest(vector[None], 10, "image")
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def remove(folder: Path, share: str, *segments: str) -> dict[str, Any]:
    """Remove a share of each segment's rows from its subset, as a new removal list does."""
    import pyarrow.parquet as pq

    random = np.random.default_rng(1)
    removed = 0
    for segment in segments:
        source, out = subset(folder, segment), _empty(folder / "removed" / segment)
        table = pq.read_table(source / "part-00000.parquet")
        keep = random.random(len(table)) >= float(share)
        removed += int((~keep).sum())
        pq.write_table(table.filter(keep), out / "part-00000.parquet")
        for modality in MODALITIES:
            vectors = SubsetPart(source, 0).vectors(modality)
            path = SubsetPart(out, 0).vectors_path(modality)
            path.parent.mkdir()
            np.save(path, vectors[keep])
        shutil.rmtree(source)
        out.rename(source)
    return {"removed": removed}


def grow(folder: Path, *segments: str) -> dict[str, Any]:
    """Add the segments one by one, and measure what each costs the index."""
    codec = Codec.open(folder / "codec")
    parts: list[SegmentIndex] = []
    previous: Path | None = None
    costs = []
    for number, segment in enumerate(segments):
        started = time.process_time()
        own = _empty(folder / "grow" / "segments" / segment)
        build_index(subset(folder, segment), own, options(folder), model=MODEL, codec=codec)
        encoded, before = time.process_time(), _written()
        parts.append(SegmentIndex(SegmentKey.parse(segment), "0"))
        out = _empty(folder / "grow" / f"index-{number % 2}")
        summary = merge_indices(
            parts,
            lambda key: folder / "grow" / "segments" / str(key),
            out,
            options(folder),
            lambda key: subset(folder, str(key)),
            previous=previous,
        )
        ended = time.process_time()
        costs.append([encoded - started, ended - encoded, _written() - before, len(summary.runs)])
        previous = out
    return {"costs": costs}


def _written() -> int:
    """Number of bytes that this process has written."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    steps: dict[str, Callable[..., dict[str, Any]]] = {
        step.__name__: step for step in (train, encode, merge, query, remove, grow)
    }
    print(json.dumps(steps[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
