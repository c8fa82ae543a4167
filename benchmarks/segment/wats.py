"""cc2dataset's stage by its own interpreter, a process a core: ``wats.py OUT.parquet WAT…``."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
from cc2dataset.main import process_wat  # type: ignore[import-not-found]


def links(wat: str) -> list[dict[str, str]]:
    return [{"url": url, "alt": alt} for _uid, url, alt, *_place in process_wat(wat, "image")]


if __name__ == "__main__":
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = [row for found in pool.map(links, sys.argv[2:]) for row in found]
    pd.DataFrame(rows).to_parquet(sys.argv[1])
