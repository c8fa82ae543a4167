"""Commands for whoever runs a deployment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from laion_assets.cli.common import argument, command, dagster_instance


@command(
    "crawls",
    "list the crawls that the source offers",
    about="""
List the crawls that the crawl source offers, by name and title. The source is
[crawl_source] in the settings.
""",
    example="crawls",
)
def crawls(args: argparse.Namespace) -> None:
    from laion_assets.crawl.source import CrawlSource
    from laion_assets.settings import load_settings

    for info in CrawlSource(load_settings(args.config).crawl_source).crawls():
        print(f"{info.name:20} {info.title}")


@command(
    "crawl add",
    "add a crawl's segments as partitions",
    about="""
Add the segments of a crawl as partitions, as new_crawl_sensor does for the
crawls that [discovery] in the settings takes. Materialize them in Dagster's UI.
Needs DAGSTER_HOME.
""",
    example="crawl add CC-MAIN-2024-22",
    arguments=[argument("crawl", metavar="CRAWL", help="name of the crawl")],
)
def crawl_add(args: argparse.Namespace) -> None:
    from laion_assets.crawl.source import CrawlSource
    from laion_assets.defs.partitions import crawls as partitions
    from laion_assets.layout import CRAWL_NAME
    from laion_assets.settings import load_settings

    if not CRAWL_NAME.fullmatch(args.crawl):
        args.parser.error(f"{args.crawl!r} is not the name of a crawl, such as CC-MAIN-2024-22")
    source = CrawlSource(load_settings(args.config).crawl_source)
    segments = source.segments(args.crawl)
    instance = dagster_instance()
    instance.add_dynamic_partitions(partitions.name or "", [args.crawl])
    print(f"added {args.crawl} with {len(segments)} segments")


@command(
    "prune",
    "delete old runs and logs from Dagster's storage",
    about="""
Delete old log lines, and old runs that made nothing, from Dagster's storage. No
partition becomes missing or stale. How old is [retention] in the settings.
Needs DAGSTER_HOME.
""",
    example="prune --dry-run",
    arguments=[
        argument("--dry-run", action="store_true", help="only show what would be deleted"),
    ],
)
def prune(args: argparse.Namespace) -> None:
    from laion_assets.defs import retention
    from laion_assets.settings import load_settings

    instance, policy = dagster_instance(), load_settings(args.config).retention
    pruned = retention.prune(instance, policy, dry_run=args.dry_run)
    print(f"{'would delete' if args.dry_run else 'deleted'}: {pruned}")


@command(
    "metrics",
    "serve the stages' rates to Prometheus",
    about="""
Serve rows, bytes and seconds of each stage to Prometheus at /metrics, from what
every materialization records, until interrupted. Needs DAGSTER_HOME.
""",
    example="metrics --port 9464",
    arguments=[
        argument(
            "--host",
            default="127.0.0.1",
            help="address to listen on (default: 127.0.0.1)",
        ),
        argument("--port", type=int, default=9464, help="port to listen on (default: 9464)"),
        argument(
            "--textfile",
            type=Path,
            metavar="FILE",
            help="keep writing this file, for node_exporter, instead of serving",
        ),
        argument(
            "--every",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="seconds between two updates (default: 60)",
        ),
    ],
)
def metrics(args: argparse.Namespace) -> None:
    from laion_assets.defs.prometheus import export

    export(
        dagster_instance(),
        port=args.port,
        host=args.host,
        textfile=args.textfile,
        every_s=args.every,
    )


COMMANDS: Final = (crawls, crawl_add, prune, metrics)
