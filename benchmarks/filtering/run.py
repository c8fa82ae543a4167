"""``python -m benchmarks.filtering.run``: scoring, tagging and filtering, in rows per second."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks import measure, table
from benchmarks.peer import WORK
from laion_assets.clip.vectors import SamplesWriter
from laion_assets.schemas import EMBEDDED

STEPS: Final = {
    "texts": "texts that name minors (word list over captions)",
    "tags": "safety tags (image embeddings against 77 categories)",
    "similarity": "similarity of image and text",
    "score": "all of these, read and written: `scored_pairs`",
    "choose": "the recipe laion400m's choice of rows",
    "predicate": "a recipe with a condition in SQL",
    "take": "a subset with its embeddings, read and written: `filtered_subset`",
}
_WORDS: Final = 4_000
"""Number of different words in the captions; one caption in fifty has one of the word list, too."""
_SHARD: Final = 10_000
"""Rows of a shard."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--dim", type=int, default=512, help="dimensions of an embedding: ViT-B/32 has 512"
    )
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()

    publish("filtering", STEPS, args.rows, args.dim, args.repeat)


def publish(name: str, steps: Mapping[str, str], rows: int, dim: int, repeat: int) -> None:
    """Measure steps, step -> title, in their order over seeded embeddings, and publish the table
    of this name."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    n = rows // _SHARD * _SHARD
    with SamplesWriter(folder / "embeddings", EMBEDDED, dim) as writer:
        for number in range(n // _SHARD):
            writer.write(*_make_shard(number, _SHARD, dim))
    cells = []
    for step, title in steps.items():
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "benchmarks.filtering.work",
            step,
            folder,
        ]
        runs = [measure.run(command) for _ in range(repeat)]
        results = [json.loads(run.stdout) for run in runs]
        seconds, cpu = (
            sorted(result[name] for result in results)[repeat // 2]
            for name in ("seconds", "cpu_seconds")
        )
        peak = max(run.peak_own_bytes for run in runs)
        print(step, results, file=sys.stderr, flush=True)
        cells.append(
            [title, f"{seconds:.1f}", f"{n / seconds:,.0f}", f"{cpu:.1f}", f"{peak / 1e6:.0f}"]
        )
    shutil.rmtree(folder)
    text = table.markdown(["step", "s", "rows/s", "CPU s", "peak MB"], cells)
    text += f"\n\n{n:,} rows of {dim} dimensions, median of {repeat}."
    table.publish(name, text)


def _make_shard(
    number: int, rows: int, dim: int
) -> tuple[pa.Table, NDArray[np.float32], NDArray[np.float32]]:
    """Make embeddings with similarities around the threshold, and captions of 3 to 15 words."""
    chance = np.random.default_rng(number)
    images = chance.normal(size=(rows, dim)).astype(np.float32)
    noise = chance.normal(size=(rows, dim)).astype(np.float32)
    texts = 0.3 * images + noise
    for vectors in (images, texts):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = np.array([*(f"w{chance.integers(1 << 30):x}" for _ in range(_WORDS)), "kids"])
    captions = [
        " ".join(words[chance.integers(0, _WORDS, chance.integers(3, 16))]) for _ in range(rows)
    ]
    for at in chance.integers(0, rows, rows // 50):
        captions[at] += " for Kids"
    columns = {
        "SAMPLE_ID": chance.integers(-(1 << 62), 1 << 62, rows),
        "url": [f"https://img.example/{number}/{row}.jpg" for row in range(rows)],
        "text": captions,
        "height": chance.integers(100, 2000, rows),
        "width": chance.integers(100, 2000, rows),
        "language_score": np.full(rows, 0.9),
        "sha256": [chance.bytes(32).hex() for _ in range(rows)],
        "md5": [chance.bytes(16).hex() for _ in range(rows)],
        "key": [f"{number:05d}{row:04d}" for row in range(rows)],
        "shard": np.full(rows, number),
    }
    made = pa.table(
        [pa.array(columns.get(field.name, ["en"] * rows)).cast(field.type) for field in EMBEDDED],
        schema=EMBEDDED,
    )
    return made, images, texts


if __name__ == "__main__":
    main()
