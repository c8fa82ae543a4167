"""One way through a list, in its own process on one core: ``python -m benchmarks.url_lists.ours WAY
LIST``. Prints JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from laion_assets.funnel import StageCounts
from laion_assets.pairs.judge import Judge, passed
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.text import clean_texts
from laion_assets.pairs.urls import Base
from laion_assets.url_lists.extract import ExtractRange, carried_schema
from laion_assets.url_lists.files import ListFile, find_files
from laion_assets.url_lists.options import ReadOptions
from laion_assets.url_lists.rows import open_rows

RULES = PairRules(languages=[])


def read(file: ListFile) -> int:
    """Read all rows as record batches."""
    with open_rows(file, ReadOptions()) as rows:
        return sum(len(batch) for batch in rows.batches())


def before_language(file: ListFile) -> int:
    """Read, clean the texts, and apply the rules of text and URL."""
    judge, kept = Judge(RULES, StageCounts("pairs")), 0
    with open_rows(file, ReadOptions()) as rows:
        for batch in rows.batches():
            srcs, alts = (batch[name].to_pylist() for name in ("URL", "TEXT"))
            _, srcs = passed(judge.texts(clean_texts(alts)), srcs)
            (urls,) = passed(judge.urls(srcs, [Base(None)] * len(srcs)))
            kept += len(urls)
    return kept


def everything(file: ListFile) -> int:
    """Make pairs: language, uid, parquet, and the list's own column, too."""
    with open_rows(file, ReadOptions()) as rows:
        carried = carried_schema([(rows.schema, rows.columns)])
    make = ExtractRange({file.name: file}, ReadOptions(), carried)
    place = {"crawl": "", "segment": "", "wat_file": file.name}
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(), Path(folder) / "pairs.parquet", RULES, **place)[1].kept


WAYS = {way.__name__: way for way in (read, before_language, everything)}

if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    (listed,) = find_files([sys.argv[2]], ReadOptions())
    cpu = time.process_time()
    n = WAYS[sys.argv[1]](listed)
    print(json.dumps({"cpu_seconds": time.process_time() - cpu, "n": n}))
