"""Other people's readers over a table folder of the lake, each without options."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory


def assert_readable(folder: Path, columns: Collection[str], rows: int) -> None:
    """Assert that pandas, pyarrow, DuckDB, polars and ``datasets`` find each row once.

    The first three must find all ``columns``, those of the partition's key included.
    """
    import duckdb
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq
    from datasets import load_dataset

    files = str(folder / "**" / "*.parquet")
    found = {
        "pandas": pd.read_parquet(folder),
        "pyarrow": pq.read_table(folder).to_pandas(),
        "duckdb": duckdb.sql(f"from read_parquet('{files}')").df(),
    }
    for reader, frame in found.items():
        assert len(frame) == rows, reader
        assert set(frame.columns) == set(columns), reader
    assert ds.dataset(folder).to_table().num_rows == rows
    assert pl.read_parquet(files).height == rows
    with TemporaryDirectory() as cache:
        loaded = load_dataset("parquet", data_files=files, cache_dir=cache)
        assert loaded["train"].num_rows == rows
