"""cc2dataset's stage, run by its own interpreter: ``wats.py OUT.parquet WAT…``."""

import sys

import pandas as pd
from cc2dataset.main import process_wat  # type: ignore[import-not-found]

if __name__ == "__main__":
    rows = [
        {"url": url, "alt": alt}
        for wat in sys.argv[2:]
        for _uid, url, alt, *_place in process_wat(wat, "image")
    ]
    pd.DataFrame(rows).to_parquet(sys.argv[1])
