"""Real shards at the smallest size: drawings in tars, their rows beside them, and the part of the
subset that says which were kept."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.pairs import Shard
from laion_assets.sample_crawl.drawings import every_drawing, render
from laion_assets.tables import part_path

CRAWL, SEGMENT = "CC-MAIN-2000-13", "00"
MakeShards = Callable[[Path, int, int], list[Shard]]


@pytest.fixture(scope="session")
def tiny() -> GenerationOptions:
    return GenerationOptions(
        image_size=16,
        codebook=16,
        code_channels=4,
        vq_channels=[8, 8, 8],
        vq_steps=6,
        vq_batch=8,
        vq_weights="",
        text_tokens=10,
        width=16,
        layers=1,
        heads=2,
        steps=8,
        batch=8,
        evaluate_every=4,
        evaluate_pairs=16,
        checkpoint_every=2,
        held_out_share=0.3,
        subset_shares=[0.2, 0.5],
        captions=["A red heart on a white background"],
        held_out_captions=1,
        samples=4,
        sample_batch=4,
        best=2,
        guidance_compared=[1.0, 3.0],
        guidance_samples=3,
        device="cpu",
    )


@pytest.fixture(scope="session")
def make_shards() -> MakeShards:
    """Write ``n`` shards of ``size`` images below a folder; the subset keeps two thirds of them."""

    def make(root: Path, n: int, size: int) -> list[Shard]:
        rng = random.Random(1)
        kinds = every_drawing()
        made, kept = [], []
        subset, images = root / "subset", root / "images"
        subset.mkdir(parents=True, exist_ok=True)
        images.mkdir(parents=True, exist_ok=True)
        for number in range(n):
            tar = images / f"{number:05d}.tar"
            first, rows = len(kept), []
            with tarfile.open(tar, "w") as archive:
                for row in range(size):
                    drawing = rng.choice(kinds)
                    key = f"{number:05d}{row:04d}"
                    data = render(drawing, number * size + row)
                    member = tarfile.TarInfo(f"{key}.jpg")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
                    sha256 = hashlib.sha256(data).hexdigest()
                    rows.append({"key": key, "sha256": sha256})
                    if row % 3:
                        kept.append(
                            {
                                "key": key,
                                "TEXT": drawing.caption(rng),
                                "SAMPLE_ID": number * size + row,
                                "URL": f"https://drawings.test/{key}.jpg",
                                "sha256": sha256,
                                "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
                                "crawl": CRAWL,
                                "segment": SEGMENT,
                            }
                        )
            pq.write_table(pa.Table.from_pylist(rows), tar.with_suffix(".parquet"))
            made.append(Shard(part_path(subset, 0), tar, first, len(kept)))
        # Smaller row groups than a shard's rows, and such as two shards share.
        pq.write_table(pa.Table.from_pylist(kept), part_path(subset, 0), row_group_size=5)
        return made

    return make
