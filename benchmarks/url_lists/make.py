"""A list of any number of rows, as parquet and as CSV: captions of the sample crawl, with a word of
their own."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from laion_assets.sample_crawl.plan import Plan


def make_lists(folder: Path, rows: int) -> list[Path]:
    """Write the lists unless they are present; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"list-{rows}.{suffix}" for suffix in ("parquet", "csv")]
    if all(path.exists() for path in paths):
        return paths
    texts = [pair.text for pair in Plan().pairs]
    table = pa.table(
        {
            "URL": [
                f"https://cdn{n % 9973}.example.com/uploads/{n % 12}/{n:x}/photo-{n}.jpg"
                for n in range(rows)
            ],
            "TEXT": [f"{text} no. {n}" for n, text in enumerate(islice(cycle(texts), rows))],
            "similarity": [0.3 + n % 100 / 1000 for n in range(rows)],
        }
    )
    pq.write_table(table, paths[0], compression="zstd")
    pa.csv.write_csv(table, paths[1])
    return paths
