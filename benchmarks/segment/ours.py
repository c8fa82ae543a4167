"""Ours, as deployed: ``python -m benchmarks.segment.ours CONFIG HOME``.

The job `segment` in one process on a Dagster instance in ``HOME``. Prints a JSON line: the seconds
of each asset's step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import dagster as dg

from benchmarks.segment.make import CRAWL
from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import partition_key
from laion_assets.layout import SegmentKey
from laion_assets.settings import load_settings


def main() -> None:
    config, home = map(Path, sys.argv[1:])
    definitions = build_defs(load_settings(config))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("crawls", [CRAWL])
        done = definitions.resolve_job_def("segment").execute_in_process(
            instance=instance,
            partition_key=partition_key(SegmentKey(CRAWL, "00")),
            run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
        )
        stages = {
            step.step_key: step.end_time - step.start_time
            for step in instance.get_run_step_stats(done.run_id)
            if step.start_time and step.end_time
        }
    assert done.success
    print(json.dumps(stages))


if __name__ == "__main__":
    main()
