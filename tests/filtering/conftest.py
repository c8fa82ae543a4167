"""Folders as the embeddings stage publishes them, with chosen similarities and tags."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.clip.vectors import image_path, text_path
from laion_assets.safety.minors import load_words
from laion_assets.safety.prompts import Categories, Ranked
from laion_assets.schemas import EMBEDDED, sample_id_of, uid_of
from laion_assets.tables import VectorsWriter, part_path, write_table

DIM = 8
# One dimension per category: two safe, two NSFW, a child, an adult, an animal, a thing.
SAFE, NSFW, CHILD, ADULT, ANIMAL, THING = (0, 1), (2, 3), 4, 5, 6, 7

PLAIN = {SAFE[0]: 0.9, SAFE[1]: 0.8, ADULT: 0.5, THING: 0.5}
UNSURE = {NSFW[0]: 0.9, SAFE[1]: 0.8, ADULT: 0.5, THING: 0.5}
NAKED = {NSFW[0]: 0.9, NSFW[1]: 0.8, SAFE[0]: 0.3, ADULT: 0.5, THING: 0.5}

MakeEmbeddings = Callable[..., Path]


def _ranked(rows: dict[int, bool]) -> Ranked:
    vectors = np.eye(DIM, dtype=np.float32)[list(rows)]
    return Ranked(tuple(f"category {at}" for at in rows), np.array(list(rows.values())), vectors)


@pytest.fixture
def categories() -> Categories:
    return Categories(
        nsfw=_ranked({0: False, 1: False, 2: True, 3: True}),
        underage=_ranked({CHILD: True, ADULT: False, SAFE[0]: False, SAFE[1]: False}),
        animals=_ranked({ANIMAL: True, THING: False}),
        words=load_words(),
    )


def sample(
    number: int, similarity: float = 0.5, near: dict[int, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """A row of metadata, with `image` and `text_vector` of about the given similarity."""
    image = np.zeros(DIM)
    for dimension, weight in (near or PLAIN).items():
        image[dimension] = weight
    image /= np.linalg.norm(image)
    # A fixed direction, orthogonal to the image, carries what the two do not share.
    other = np.cos(np.arange(DIM) + number)
    other -= (other @ image) * image
    other /= np.linalg.norm(other)
    url = f"https://a.test/{number}.jpg"
    text = changes.get("text", f"a photo of thing {number}")
    return {
        "SAMPLE_ID": sample_id_of(uid_of(url, text)),
        "url": url,
        "text": text,
        "height": 300,
        "width": 400,
        "license": "?",
        "language": "en",
        "language_score": 0.5,
        "page_url": "https://a.test/",
        "sha256": "00",
        "md5": "00",
        "key": f"{number:09d}",
        "shard": 0,
        "crawl": "CC-MAIN-2021-01",
        "segment": "00",
        "wat_file": "a.warc.wat.gz",
        "image": image,
        "text_vector": similarity * image + np.sqrt(1 - similarity**2) * other,
    } | changes


@pytest.fixture
def make_embeddings(tmp_path: Path) -> MakeEmbeddings:
    def make(*parts: list[dict[str, Any]]) -> Path:
        folder = tmp_path / "embeddings"
        for number, rows in enumerate(parts):
            for vector, path in (("image", image_path), ("text_vector", text_path)):
                vectors = np.array([row[vector] for row in rows]).reshape(-1, DIM)
                with VectorsWriter(path(folder, number), DIM) as writer:
                    writer.write(vectors)
            columns = [{name: row[name] for name in EMBEDDED.names} for row in rows]
            table = pa.Table.from_pylist(columns, schema=EMBEDDED)
            write_table(part_path(folder, number), table)
        return folder

    return make


def write_shard(
    folder: Path, rows: Sequence[dict[str, Any]], colours: Sequence[tuple[int, int, int]]
) -> None:
    """Write `00000.tar` with a picture of one colour for each row, and its parquet."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for row, colour in zip(rows, colours, strict=True):
            picture = io.BytesIO()
            Image.new("RGB", (40, 40), colour).save(picture, "JPEG")
            member = tarfile.TarInfo(f"{row['key']}.jpg")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    columns = {name: [row[name] for row in rows] for name in ("key", "url")}
    pq.write_table(pa.table(columns), folder / "00000.parquet")
