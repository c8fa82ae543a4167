"""Other people's readers over a table folder of the lake, each without options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def assert_readable(folder: Path, columns: Sequence[str], rows: int) -> None:
    """Assert that pandas, pyarrow, DuckDB and ``datasets`` find each row once, with all columns."""
    import duckdb
    import pandas as pd
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
    loaded = load_dataset("parquet", data_files=files, cache_dir=folder.parent / "cache")
    assert loaded["train"].num_rows == rows
