"""The input: a lake with an index, and the same vectors as clip-retrieval's folder.

Vectors of 512 numbers with the structure of CLIP's: one direction that all share (CLIP's images
lie in a narrow cone), 20,000 centres of very different weight (Zipf's) around it, and noise around
the centres, so that a vector's cosine with its centre is about 0.8 and with others about 0.3. Not
white noise, where no index finds anything. The index is faiss' IVF1024 with 8-bit codes, of which
16 lists are searched; both services open the same file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.knn.files import IDS, IndexSummary, write_ids
from laion_assets.schemas import SUBSET
from laion_assets.segments import SegmentKey

KEY: Final = SegmentKey("CC-MAIN-2000-05", "00")
MODEL: Final = "laion-assets-tiny/laion-assets-tiny"
D: Final = 512
_PART: Final = 10_000
_LISTS: Final = 1_024
_PROBES: Final = 16
_TRAINED_ON: Final = 60_000
_CENTRES: Final = 20_000
_WORDS: Final = "small red house old street dog photo blue with the garden".split()  # noqa: SIM905

Vectors = npt.NDArray[np.float32]


class Mixture:
    """Draws vectors; the same seed gives the same."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        shared = random.normal(size=D).astype(np.float32)
        own = random.normal(size=(_CENTRES, D)).astype(np.float32)
        self._centres = _unit(_unit(own) + 0.9 * _unit(shared[None]))
        weights = 1 / np.arange(1, _CENTRES + 1)
        self._weights = weights / weights.sum()

    def draw(self, n: int, random: np.random.Generator) -> Vectors:
        chosen = self._centres[random.choice(_CENTRES, n, p=self._weights)]
        noise = random.standard_normal((n, D), dtype=np.float32) * np.float32(0.75 / D**0.5)
        return _unit(chosen + noise)


def _unit(vectors: Vectors) -> Vectors:
    made: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return made


def make(folder: Path, n: int) -> None:
    """``folder/lake`` for ours, ``folder/theirs`` for clip-retrieval; nothing if they are there."""
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text()) == {"n": n, "made": 1}:
        return
    shutil.rmtree(folder, ignore_errors=True)
    subset = folder / "lake" / "filtered_subset" / KEY.hive
    index_dir, theirs = folder / "lake" / "search_index", folder / "theirs"
    for needed in (subset / "img_emb", subset / "text_emb", index_dir, theirs / "metadata"):
        needed.mkdir(parents=True)
    mixture, random = Mixture(0), np.random.default_rng(1)
    index = faiss.index_factory(D, f"IVF{_LISTS},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(mixture.draw(_TRAINED_ON, random))
    for part, start in enumerate(range(0, n, _PART)):
        rows = min(_PART, n - start)
        vectors = mixture.draw(rows, random)
        index.add(vectors)
        image = subset / "img_emb" / f"img_emb_{part:05d}.npy"
        np.save(image, vectors.astype(np.float16))
        os.link(image, subset / "text_emb" / f"text_emb_{part:05d}.npy")
        table = _metadata(start, rows, part, random)
        pq.write_table(table, subset / f"part-{part:05d}.parquet", compression="zstd")
        theirs_table = table.select(["URL", "TEXT", "NSFW"]).rename_columns(
            ["url", "caption", "NSFW"]
        )
        pq.write_table(theirs_table, theirs / "metadata" / f"metadata_{part:05d}.parquet")
        print(f"made {start + rows:,} of {n:,}", end="\r", file=sys.stderr, flush=True)
    faiss.extract_index_ivf(index).nprobe = _PROBES
    faiss.write_index(index, str(index_dir / "image.index"))
    for link in (index_dir / "text.index", theirs / "image.index"):
        os.link(index_dir / "image.index", link)
    write_ids(index_dir, _ids(n))
    IndexSummary(f"IVF{_LISTS},SQ8", n, D, MODEL, {"faiss": faiss.__version__}).write(index_dir)
    done.write_text(json.dumps({"n": n, "made": 1}))


def _metadata(start: int, rows: int, part: int, random: np.random.Generator) -> pa.Table:
    words = random.integers(0, len(_WORDS), (rows, 8))
    columns: dict[str, list[Any]] = {
        "SAMPLE_ID": list(range(start, start + rows)),
        "URL": [f"https://images.example/{start + i:09d}/picture.jpg" for i in range(rows)],
        "TEXT": [" ".join(_WORDS[word] for word in row) for row in words],
        "HEIGHT": [400] * rows,
        "WIDTH": [600] * rows,
        "LICENSE": ["?"] * rows,
        "NSFW": ["UNLIKELY"] * rows,
        "similarity": [0.33] * rows,
        "LANGUAGE": ["en"] * rows,
        "page_url": [f"https://pages.example/{start + i}" for i in range(rows)],
        "sha256": [f"{start + i:064x}" for i in range(rows)],
        "md5": ["0" * 32] * rows,
        "key": [f"{part:05d}{i:04d}" for i in range(rows)],
        "crawl": [KEY.crawl] * rows,
        "segment": [KEY.segment] * rows,
        "wat_file": ["a.warc.wat.gz"] * rows,
    }
    return pa.table(columns, schema=SUBSET)


def _ids(n: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, n, _PART):
        rows = np.arange(start, min(n, start + _PART))
        yield pa.record_batch(
            [
                rows,
                rows,
                pa.array([KEY.crawl] * len(rows)),
                pa.array([KEY.segment] * len(rows)),
                pa.array(rows // _PART, pa.int32()),
                rows % _PART,
            ],
            schema=IDS,
        )


def queries(n: int) -> Vectors:
    """``(n, D)``: of the same mixture, none of them in the index."""
    return Mixture(0).draw(n, np.random.default_rng(2))
