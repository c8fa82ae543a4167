"""One question, asked in one way, in its own process: prints its seconds and its answer."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

BINS: Final = 20
TOP: Final = 20
WIDTH: Final = 10

OURS: Final = {
    "top_hosts": f"select host, samples from top_hosts({TOP})",
    "similarity_histogram": f"select samples from similarity_histogram({BINS})",
    "resolution_table": "select samples from resolution_table()",
    "caption_lengths": f"select low, samples from caption_lengths({WIDTH})",
    "languages": "select language, samples from languages()",
    "licences": "select license, samples from licences()",
    "dup_images": "select count(*), sum(samples)::bigint from dup_images()",
    "sample": "select count(*) from sample(100)",
}
"""Queries by question: the macro, and the part of its answer that all ways must agree on."""


def _ours(question: str, lake: Path) -> list[Any]:
    from laion_assets.stats.catalog import query

    answer = query(lake / "catalog" / "catalog.duckdb", OURS[question])
    return [list(row.values()) for row in answer.to_pylist()]


def _pandas(question: str, lake: Path) -> list[Any]:
    import numpy as np
    import pandas as pd

    def read(*columns: str) -> Any:
        return pd.read_parquet(
            lake / "filtered_subset", columns=list(columns) or None, partitioning=None
        )

    def counted(values: Any) -> list[Any]:
        found = values.value_counts()
        return sorted(([key, int(n)] for key, n in found.items()), key=lambda x: (-x[1], x[0]))

    def histogram() -> list[Any]:
        return [[int(n)] for n in np.histogram(read("similarity")["similarity"], bins=BINS)[0]]

    def resolution() -> list[Any]:
        frame = read("WIDTH", "HEIGHT")
        sides = frame.max(axis=1), frame.min(axis=1)
        numbers = [int((side >= n).sum()) for n in (1024, 512, 256) for side in sides]
        return [[len(frame)], *([n] for n in numbers)]

    def lengths() -> list[Any]:
        found = (read("TEXT")["TEXT"].str.len() // WIDTH * WIDTH).value_counts().sort_index()
        return [[int(low), int(n)] for low, n in found.items()]

    def duplicates() -> list[Any]:
        found = read("sha256")["sha256"].value_counts()
        found = found[found > 1]
        return [[len(found), int(found.sum())]]

    asked: dict[str, Callable[[], list[Any]]] = {
        "top_hosts": lambda: counted(read("URL")["URL"].str.split("/").str[2])[:TOP],
        "similarity_histogram": histogram,
        "resolution_table": resolution,
        "caption_lengths": lengths,
        "languages": lambda: counted(read("LANGUAGE")["LANGUAGE"]),
        "licences": lambda: counted(read("LICENSE")["LICENSE"]),
        "dup_images": duplicates,
        "sample": lambda: [[len(read().sample(100))]],
    }
    return asked[question]()


def _pyarrow(question: str, lake: Path) -> list[Any]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    subset = ds.dataset(lake / "filtered_subset", format="parquet")

    def read(*columns: str) -> Any:
        return subset.to_table(columns=list(columns))

    def by(values: Any) -> Any:
        return pa.table({"value": values}).group_by("value").aggregate([([], "count_all")])

    def counted(values: Any) -> list[Any]:
        rows = ([row["value"], row["count_all"]] for row in by(values).to_pylist())
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def histogram() -> list[Any]:
        values = read("similarity")["similarity"].to_numpy()
        return [[int(n)] for n in np.histogram(values, bins=BINS)[0]]

    def resolution() -> list[Any]:
        table = read("WIDTH", "HEIGHT")
        sides = [
            larger(table["WIDTH"], table["HEIGHT"])
            for larger in (pc.max_element_wise, pc.min_element_wise)
        ]
        numbers = [
            pc.sum(pc.greater_equal(side, n)).as_py() for n in (1024, 512, 256) for side in sides
        ]
        return [[table.num_rows], *([n] for n in numbers)]

    def lengths() -> list[Any]:
        length = pc.cast(pc.utf8_length(read("TEXT")["TEXT"]), pa.int64())
        return sorted(counted(pc.multiply(pc.divide(length, WIDTH), WIDTH)))

    def duplicates() -> list[Any]:
        found = by(read("sha256")["sha256"])
        found = found.filter(pc.greater(found["count_all"], 1))
        return [[found.num_rows, pc.sum(found["count_all"]).as_py()]]

    def hosts() -> list[Any]:
        return counted(pc.list_element(pc.split_pattern(read("URL")["URL"], "/"), 2))[:TOP]

    def sample() -> list[Any]:
        rows = np.random.default_rng(0).choice(subset.count_rows(), 100, replace=False)
        return [[subset.take(pa.array(np.sort(rows))).num_rows]]

    asked: dict[str, Callable[[], list[Any]]] = {
        "top_hosts": hosts,
        "similarity_histogram": histogram,
        "resolution_table": resolution,
        "caption_lengths": lengths,
        "languages": lambda: counted(read("LANGUAGE")["LANGUAGE"]),
        "licences": lambda: counted(read("LICENSE")["LICENSE"]),
        "dup_images": duplicates,
        "sample": sample,
    }
    return asked[question]()


_LOADED: Final = {
    "ours": "laion_assets.stats.catalog",
    "pandas": "pandas",
    "pyarrow": "pyarrow.dataset",
}
"""Module that each way imports before the clock starts."""

WAYS: Final = {"ours": _ours, "pandas": _pandas, "pyarrow": _pyarrow}


def main(way: str, question: str, lake: str, memory_gb: str) -> None:
    if way != "ours":  # DuckDB limits its memory itself, and spills
        most = int(float(memory_gb) * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    importlib.import_module(_LOADED[way])
    started = time.perf_counter()
    answer = WAYS[way](question, Path(lake))
    print(json.dumps({"seconds": time.perf_counter() - started, "answer": answer}))


if __name__ == "__main__":
    main(*sys.argv[1:])
