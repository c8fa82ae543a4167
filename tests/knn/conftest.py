"""Small subsets as `filtered_subset` publishes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import image_path, text_path
from laion_assets.schemas import SUBSET, sample_id_of, uid_of

D = 32
MODEL = ModelIdentity(model="m", model_version="1")

MakeSubset = Callable[..., Path]


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def sample(crawl: str, segment: str, part: int, row: int) -> dict[str, object]:
    url = f"https://a.test/{crawl}/{segment}/{part}/{row}.jpg"
    text = f"picture {row} of part {part}"
    return {
        "SAMPLE_ID": sample_id_of(uid_of(url, text)),
        "URL": url,
        "TEXT": text,
        "HEIGHT": 300 + row,
        "WIDTH": 400 + row,
        "LICENSE": "?",
        "NSFW": "UNLIKELY",
        "similarity": 0.3 + row / 10_000,
        "LANGUAGE": "en",
        "page_url": "https://a.test/",
        "sha256": "00",
        "md5": "00",
        "key": f"{part:05d}{row:04d}",
        "crawl": crawl,
        "segment": segment,
        "wat_file": "w",
    }


@pytest.fixture
def make_subset(tmp_path: Path) -> MakeSubset:
    """Function that writes a subset: ``(crawl, segment, rows_per_part, seed=0, d=D) -> folder``."""

    def make(crawl: str, segment: str, rows: Sequence[int], seed: int = 0, d: int = D) -> Path:
        folder = tmp_path / f"subset-{crawl}-{segment}-{seed}"
        random = np.random.default_rng([seed, *f"{crawl}|{segment}".encode()])
        for path in (image_path(folder, 0), text_path(folder, 0)):
            path.parent.mkdir(parents=True, exist_ok=True)
        for part, n in enumerate(rows):
            records = [sample(crawl, segment, part, row) for row in range(n)]
            # Several row groups, as a large part has.
            pq.write_table(
                pa.Table.from_pylist(records, schema=SUBSET),
                folder / f"part-{part:05d}.parquet",
                row_group_size=16,
            )
            for path_of in (image_path, text_path):
                vectors = unit(random.normal(size=(n, d)))
                np.save(path_of(folder, part), vectors)
        return folder

    return make
