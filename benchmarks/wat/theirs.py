"""The peers, one per process, run by their own interpreter: ``theirs.py WAY WAT``."""

import json
import sys
import time
from pathlib import Path


def read(wat):
    """Read every record whole with FastWARC."""
    from fastwarc.warc import ArchiveIterator

    with Path(wat).open("rb") as stream:
        return sum(
            1 for record in ArchiveIterator(stream, parse_http=False) if record.reader.read()
        )


def cc2dataset(wat):
    """Extract one WAT with cc2dataset, as its Spark tasks do."""
    return sum(1 for _ in process_wat(wat, "image"))


if __name__ == "__main__":
    if sys.argv[1] == "cc2dataset":
        from cc2dataset.main import process_wat
    started, before = time.perf_counter(), time.process_time()
    n = {"read": read, "cc2dataset": cc2dataset}[sys.argv[1]](sys.argv[2])
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - before}
    print(json.dumps(spent | {"n": n}))
