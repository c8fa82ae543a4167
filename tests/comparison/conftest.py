"""A segment of drawings whose captions are swapped for some, as the stages publish it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.comparison.options import ComparisonOptions
from laion_assets.comparison.pool import Segment
from laion_assets.filtering.similarities import cosines
from laion_assets.sample_crawl.drawings import every_drawing
from laion_assets.schemas import EMBEDDED, NEAR_DUPLICATES, SCORED, sample_id_of, uid_of
from laion_assets.tables import VectorsWriter, part_path, write_table
from tests.comparison.make_drawings import DRAWINGS, TINY

SWAPPED: Final = 0.4
QUICK: Final = ComparisonOptions(
    held_out_share=0.2,
    least=150,
    samples=300,
    steps=40,
    batch=100,
    width=48,
    rate=1e-2,
    device="cpu",
)


@pytest.fixture(scope="session")
def clip() -> ClipModel:
    return load_clip(TINY)


Change = Callable[[list[dict[str, Any]]], None]


@dataclass
class Drawings:
    """Pairs of drawings and captions, of which some are another drawing's."""

    rows: list[dict[str, Any]]
    images: NDArray[np.float16]
    texts: NDArray[np.float32]
    right: NDArray[np.bool_]
    """Whether each caption is its drawing's."""

    def write(
        self, root: Path, change: Callable[[list[dict[str, Any]]], None] | None = None
    ) -> Segment:
        """Write the segment's three assets; ``change`` may change the rows before."""
        rows = [dict(row) for row in self.rows]
        if change:
            change(rows)
        segment = Segment(*(root / name for name in ("scored", "embeddings", "near")))
        for place, vectors in ((image_path, self.images), (text_path, self.texts)):
            with VectorsWriter(place(segment.embeddings, 0), vectors.shape[1]) as writer:
                writer.write(vectors)
        for folder, schema in (
            (segment.scored, SCORED),
            (segment.embeddings, EMBEDDED),
            (segment.near_duplicates, NEAR_DUPLICATES),
        ):
            columns = [{name: row[name] for name in schema.names} for row in rows]
            write_table(part_path(folder, 0), pa.Table.from_pylist(columns, schema))
        return segment


@pytest.fixture(scope="session")
def drawings(clip: ClipModel) -> Drawings:
    made = np.load(DRAWINGS)
    vectors = made["vectors"].astype(np.float32)
    images = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    rng, kinds = random.Random(2), every_drawing()
    captions = [kinds[kind].caption(rng) for kind in made["kind"]]
    swapped = np.array(sorted(rng.sample(range(len(captions)), round(SWAPPED * len(captions)))))
    said = np.arange(len(captions))
    said[swapped] = np.roll(swapped, 1)
    texts = clip.encode_texts([captions[number] for number in said])
    similarity = cosines(images, texts)
    rows = [
        _row(number, captions[said[number]], float(similarity[number]))
        for number in range(len(captions))
    ]
    return Drawings(rows, images, texts, made["kind"] == made["kind"][said])


def _row(number: int, text: str, similarity: float) -> dict[str, Any]:
    url = f"https://drawings.test/{number}.jpg"
    sha256 = hashlib.sha256(url.encode()).hexdigest()
    return {
        "SAMPLE_ID": sample_id_of(uid_of(url, text)),
        "url": url,
        "text": text,
        "height": 288,
        "width": 288,
        "license": "?",
        "language": "en",
        "language_score": 1.0,
        "page_url": "https://drawings.test/",
        "sha256": sha256,
        "md5": sha256[:32],
        "key": f"{number:09d}",
        "shard": 0,
        "crawl": "CC-MAIN-2000-05",
        "segment": "00",
        "wat_file": "a.warc.wat.gz",
        "similarity": similarity,
        "nsfw": "UNLIKELY",
        "nsfw_category_1": "a",
        "nsfw_category_2": "b",
        "text_names_minors": False,
        "underage_ranked": False,
        "animal_ranked": False,
        "image_hash": 0,
        "cluster": number,
        "likeness": 1.0,
        "first": True,
    }
