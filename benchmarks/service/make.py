"""The input: a lake with an index, and the same vectors as clip-retrieval's folder.

The vectors of 512 numbers have the structure of CLIP's: one direction that all share (CLIP's images
lie in a narrow cone), 20,000 centres of very different weight (Zipf's) around it, and noise around
the centres. A vector's cosine with its centre is about 0.8, and with other vectors about 0.3. White
noise would not do: no index finds anything in it. The index is faiss' IVF1024 with 8-bit codes, of
which 16 lists are searched. Ours and the file that clip-retrieval opens have the same cells and
codes, and ours does not score candidates again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.clip.model import load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.knn.build import build_index
from laion_assets.knn.codec import Codec, Encoder, ef_search, train_codec
from laion_assets.knn.files import SearchParameters, index_path
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.subset import MODALITIES
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.schemas import SUBSET

KEY: Final = SegmentKey("CC-MAIN-2000-05", "00")
MODEL: Final = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny")
D: Final = 512
_PART: Final = 10_000
_LISTS: Final = 1_024
_PROBES: Final = 16
_MOST_WANTED: Final = 1_000
_CENTRES: Final = 20_000
_WORDS: Final = "small red house old street dog photo blue with the garden".split()  # noqa: SIM905

Vectors = npt.NDArray[np.float32]


class Mixture:
    """Source of vectors; the same seed gives the same ones."""

    def __init__(self, seed: int, d: int = D) -> None:
        random = np.random.default_rng(seed)
        shared = random.normal(size=d).astype(np.float32)
        own = random.normal(size=(_CENTRES, d)).astype(np.float32)
        self._centres = _unit(_unit(own) + 0.9 * _unit(shared[None]))
        weights = 1 / np.arange(1, _CENTRES + 1)
        self._weights = weights / weights.sum()

    def draw(self, n: int, random: np.random.Generator) -> Vectors:
        chosen = self._centres[random.choice(_CENTRES, n, p=self._weights)]
        d = self._centres.shape[1]
        noise = random.standard_normal((n, d), dtype=np.float32) * np.float32(0.75 / d**0.5)
        return _unit(chosen + noise)


def _unit(vectors: Vectors) -> Vectors:
    made: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return made


def make(folder: Path, n: int, d: int = D) -> None:
    """Make ``folder/lake`` for ours and ``folder/theirs`` for clip-retrieval, unless they exist.

    ``d``: numbers of a vector.
    """
    done = folder / "done.json"
    if done.exists() and json.loads(done.read_text()) == {"n": n, "made": 3}:
        return
    shutil.rmtree(folder, ignore_errors=True)
    lake, theirs = LocalLake.at(folder / "lake"), folder / "theirs"
    subset, index_dir = lake.folder("filtered_subset", KEY), lake.folder("search_index")
    codec = folder / "codec"
    vectors_of = [image_path(subset, 0).parent, text_path(subset, 0).parent]
    for needed in (*vectors_of, index_dir, codec, theirs / "metadata"):
        needed.mkdir(parents=True)
    mixture, random = Mixture(0, d), np.random.default_rng(1)
    for part, start in enumerate(range(0, n, _PART)):
        rows = min(_PART, n - start)
        vectors = mixture.draw(rows, random)
        np.save(image_path(subset, part), vectors.astype(np.float16))
        os.link(image_path(subset, part), text_path(subset, part))
        table = _metadata(start, rows, part, random)
        pq.write_table(table, subset / f"part-{part:05d}.parquet", compression="zstd")
        theirs_table = table.select(["URL", "TEXT", "NSFW"]).rename_columns(
            ["url", "caption", "NSFW"]
        )
        pq.write_table(theirs_table, theirs / "metadata" / f"metadata_{part:05d}.parquet")
        print(f"made {start + rows:,} of {n:,}", end="\r", file=sys.stderr, flush=True)
    options = IndexOptions(kind="ivf_sq8", cells=_LISTS, rerank=False, vectors=n)
    # The service compares versions; its text queries need a model, whatever the vectors are.
    model = load_clip(MODEL).identity
    train_codec([subset], codec, options, model=model)
    summary = build_index(
        subset, index_dir, options, model=model, codec=Codec.open(codec), tuned=False
    )
    asked = (SearchParameters(nprobe=_PROBES, rerank=0, k=_MOST_WANTED),)
    search = {name: dict.fromkeys(MODALITIES, asked) for name in summary.codecs()}
    summary.model_copy(update={"search": search}).write(index_dir)
    index = faiss.read_index(str(index_path(codec, "image")))
    encoder, first = Encoder(index), 0
    for path in sorted(vectors_of[0].iterdir()):
        # Not by `index.add`, which searches less far for the nearest cell.
        first += len(encoder.add(np.load(path).astype(np.float32), first))
    ivf = faiss.extract_index_ivf(index)
    ivf.nprobe = _PROBES
    # Search as far for cells as ours does.
    faiss.downcast_index(ivf.quantizer).hnsw.efSearch = ef_search(_PROBES)
    faiss.write_index(index, str(theirs / "image.index"))
    done.write_text(json.dumps({"n": n, "made": 3}))


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


def queries(n: int) -> Vectors:
    """Draw queries ``(n, D)`` from the same mixture; none of them is in the index."""
    return Mixture(0).draw(n, np.random.default_rng(2))
