"""``python -m benchmarks.lake.ask NAME LAKE NEEDLE``: measure one thing that people do with a lake,
in a process of its own.

Imports are done and DuckDB is loaded before the clock starts. Prints JSON: ``cpu_s``, ``peak_mb``
(of the whole process) and ``answer``, by which the parent sees that the right thing was found.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow.dataset  # noqa: F401 - what the catalog's questions load

from benchmarks.lake.make import add_segment
from laion_assets.defs.removal.survey import survey
from laion_assets.lake import LocalLake
from laion_assets.layout import CATALOG, IMAGE_SHARDS, SegmentKey
from laion_assets.removals.active import Lists
from laion_assets.removals.entries import parse
from laion_assets.schemas import sample_id_of
from laion_assets.stats.catalog import build_catalog, query
from laion_assets.stats.report import build_report
from laion_assets.stats.why import why
from laion_assets.tables import batches, part_path


def catalog_of(root: Path) -> Path:
    return root / CATALOG / "catalog.duckdb"


def build_anew(root: Path, _: SegmentKey) -> Any:
    """The catalog from nothing; it stays for the questions that come after."""
    return build_catalog(LocalLake.at(root), catalog_of(root))["views"]["subset"]


def build_next(root: Path, _: SegmentKey) -> Any:
    catalog = catalog_of(root)
    return build_catalog(LocalLake.at(root), catalog, (), catalog)["views"]["subset"]


def ask(sql: str, root: Path, needle: SegmentKey) -> Any:
    sql = sql.format(crawl=needle.crawl, segment=needle.segment)
    return query(catalog_of(root), sql).to_pylist()[:1]


def report(root: Path, _: SegmentKey) -> Any:
    with tempfile.TemporaryDirectory() as out:
        return build_report(catalog_of(root), Path(out))["samples"]


def story(column: str, root: Path, needle: SegmentKey) -> Any:
    value = first_row(root, needle)[column]
    asked = sample_id_of(value) if column == "uid" else value
    return len(why(LocalLake.at(root), str(asked)).stories)


def find_listed(root: Path, needle: SegmentKey) -> Any:
    listed = parse([f"url:{first_row(root, needle)['url']}"], "the benchmark")
    return [str(key) for key in survey(LocalLake.at(root), Lists(removals=listed)).keys]


def first_row(root: Path, key: SegmentKey) -> dict[str, Any]:
    """URL, uid and SHA-256 of a segment's first image."""
    part = part_path(root / IMAGE_SHARDS / key.hive, 0)
    row: dict[str, Any] = next(batches(part, ["url", "uid", "sha256"], rows=1)).to_pylist()[0]
    return row | {"uid": bytes.fromhex(row["uid"])}


Task = Callable[[Path, SegmentKey], Any]

TASKS: Final[Mapping[str, Task]] = {
    "catalog from nothing": build_anew,
    "catalog after one new segment": build_next,
    "count": partial(ask, "select count(*) from subset"),
    "funnel": partial(ask, "from funnel order by all"),
    "first row": partial(ask, "from subset limit 1"),
    "one segment's rows": partial(
        ask,
        "select count(*), max(similarity) from subset where crawl = '{crawl}' and "
        "segment = '{segment}'",
    ),
    "top hosts of a crawl": partial(
        ask,
        "select regexp_extract(\"URL\", '//([^/]+)', 1) as host, count(*) as n from subset "
        "where crawl = '{crawl}' group by host order by n desc, host limit 10",
    ),
    "report": report,
    "why, by URL": partial(story, "url"),
    "why, by SAMPLE_ID": partial(story, "uid"),
    "why, by SHA-256": partial(story, "sha256"),
    "find one URL to remove": find_listed,
}


def peak_bytes() -> int:
    """Peak memory of this process alone; getrusage's counts that of the parent, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    name, root, needle = sys.argv[1], Path(sys.argv[2]), SegmentKey.parse(sys.argv[3])
    if name == "catalog after one new segment":
        add_segment(root)
    for module in ("matplotlib.backends.backend_agg", "jinja2", "PIL.Image"):
        importlib.import_module(module)
    duckdb.connect().execute("select 1").fetchall()
    before = time.process_time()
    answer = TASKS[name](root, needle)
    cpu_s = time.process_time() - before
    peak_mb = peak_bytes() / 1e6
    print(json.dumps({"cpu_s": cpu_s, "peak_mb": peak_mb, "answer": answer}, default=str))


if __name__ == "__main__":
    main()
