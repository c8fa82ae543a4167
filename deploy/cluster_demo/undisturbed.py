"""The same segments in one process, one after another, into a folder: the expected result."""

from __future__ import annotations

import sys
from pathlib import Path

import dagster as dg

from laion_assets.crawl.source import CrawlSource
from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import crawls
from laion_assets.settings import load_settings


def main(config: Path) -> int:
    settings = load_settings(config)
    source, defs = CrawlSource(settings.crawl_source), build_defs(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        for crawl in sorted(info.name for info in source.crawls()):
            instance.add_dynamic_partitions(crawls.name or "", [crawl])
            for segment in source.segments(crawl):
                print(f"{crawl}|{segment.number}", flush=True)
                defs.resolve_job_def("segment").execute_in_process(
                    instance=instance, partition_key=f"{crawl}|{segment.number}"
                )
        print("the aggregates", flush=True)
        defs.resolve_job_def("aggregates").execute_in_process(instance=instance)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
