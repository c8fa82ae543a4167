"""Commands for whoever runs a deployment."""

from __future__ import annotations

import argparse
import secrets
from datetime import datetime
from pathlib import Path
from typing import Final

from laion_assets.cli.common import (
    CommandError,
    argument,
    command,
    dagster_instance,
    opened_lake,
    positive,
    say,
)


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
    "check",
    "check what a run on this machine would fail on",
    about="""
Check settings, contact, resolver, crawl source, clock, IPv6, open files, lake,
disk, GPU and model on this machine, and say what would fail later, each with
its fix. Weights that are not on this machine are fetched. The exit code is 1 if
something would fail. Until the check has passed, new_crawl_sensor asks nothing
of a crawl source elsewhere.
""",
    example="check --config my-crawl.toml",
)
def check(args: argparse.Namespace) -> None:
    from laion_assets.cli.output import print_finding
    from laion_assets.preflight.checks import Checks
    from laion_assets.preflight.record import record
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    failed = {}
    for finding in Checks(settings).run():
        print_finding(finding)
        if finding.verdict == "fails":
            failed[finding.check] = finding.found
    if "lake" not in failed:
        record(settings, [f"{name}: {found}" for name, found in failed.items()])
    if failed:
        raise CommandError(f"a run would fail: {', '.join(failed)}")


@command(
    "crawl add",
    "add a crawl's segments as partitions",
    about="""
Add the segments of a crawl, or of a list of the settings (LIST-<name>), as
partitions, as the sensors do for those that the settings name. Materialize them
in Dagster's UI. Needs DAGSTER_HOME.
""",
    example="crawl add CC-MAIN-2024-22",
    arguments=[argument("crawl", metavar="CRAWL", help="name of the crawl")],
)
def crawl_add(args: argparse.Namespace) -> None:
    from laion_assets.crawl.source import CrawlSource
    from laion_assets.defs.partitions import crawls as partitions
    from laion_assets.layout import CRAWL_NAME, LIST_CRAWL_NAME
    from laion_assets.settings import load_settings
    from laion_assets.url_lists.crawl import list_crawl

    of_list = LIST_CRAWL_NAME.fullmatch(args.crawl)
    if not (of_list or CRAWL_NAME.fullmatch(args.crawl)):
        args.parser.error(f"{args.crawl!r} is not the name of a crawl, such as CC-MAIN-2024-22")
    settings = load_settings(args.config)
    if of_list:
        segments = list_crawl(settings.lists, args.crawl).present()
    else:
        segments = CrawlSource(settings.crawl_source).segments(args.crawl)
    instance = dagster_instance()
    instance.add_dynamic_partitions(partitions.name or "", [args.crawl])
    print(f"added {args.crawl} with {len(segments)} segments")


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("a share is above 0 and at most 1")
    return share


@command(
    "estimate",
    "estimate hours, GB and requests of a run",
    about="""
Estimate what a run over a crawl's first segments takes: hours on this machine,
GB from the network and on the disk, and requests. It uses the settings, rates
measured by the benchmarks, and assumptions that docs/operations.md lists. Only
the crawl's list of WAT files is fetched.
""",
    example="estimate CC-MAIN-2024-22 --segments 1 --wat-fraction 0.03",
    arguments=[
        argument("crawl", metavar="CRAWL", help="name of the crawl"),
        argument(
            "--segments",
            type=positive,
            metavar="N",
            help="the first N segments (default: as many as [discovery] takes)",
        ),
        argument(
            "--wat-fraction",
            type=_share,
            metavar="SHARE",
            help="this share of each segment's WAT files (default: [crawl_source] wat_fraction)",
        ),
        argument("--cores", type=positive, metavar="N", help="cores (default: this machine's)"),
        argument("--gpus", type=int, metavar="N", help="GPUs, or 0 (default: this machine's)"),
    ],
)
def estimate(args: argparse.Namespace) -> None:
    from laion_assets.cli.output import print_estimate
    from laion_assets.layout import CRAWL_NAME
    from laion_assets.preflight.estimate import Machine, estimated, extent_of
    from laion_assets.settings import load_settings

    if not CRAWL_NAME.fullmatch(args.crawl):
        args.parser.error(f"{args.crawl!r} is not the name of a crawl, such as CC-MAIN-2024-22")
    settings = load_settings(args.config)
    if args.wat_fraction:
        taken = {"wat_fraction": args.wat_fraction, "wat_files_per_segment": None}
        source = settings.crawl_source.model_copy(update=taken)
        settings = settings.model_copy(update={"crawl_source": source})
    here = Machine.this_one() if args.cores is None or args.gpus is None else Machine(1, 0)
    machine = Machine(
        here.cores if args.cores is None else args.cores,
        here.gpus if args.gpus is None else args.gpus,
    )
    extent = extent_of(settings, args.crawl, args.segments)
    if extent.assumed:
        say(f"the number of WAT files is assumed: {extent.assumed}")
    print_estimate(args.crawl, estimated(settings, extent, machine))


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


def _since(text: str) -> float:
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError("give a date, such as 2026-11-20") from None


@command(
    "verify",
    "compare the lake's files with their manifests",
    about="""
Read the lake's files and compare them with the sizes and SHA-256 of their
manifests: those of all assets, or of the ones named. Each damaged file is
listed; the exit code is then 1. Restore the file from a backup, or materialize
its partition again: nothing that is damaged is taken over. Set the partition
aside first (--set-aside) where the manifest, search_index, or rows or ledger of
image_shards (part-*, _ledger/*) are damaged; the latter then get other keys.
""",
    example="verify image_shards --share 0.1",
    arguments=[
        argument("asset", nargs="*", metavar="ASSET", help="name of an asset (default: all)"),
        argument("--crawl", metavar="CRAWL", help="only this crawl's segments"),
        argument(
            "--share",
            type=_share,
            default=1.0,
            metavar="SHARE",
            help="only about this share of the partitions, chosen at random: 0.1 for a tenth",
        ),
        argument(
            "--since",
            type=_since,
            metavar="DATE",
            help="only what was published on this date or later",
        ),
        argument(
            "--set-aside",
            action="store_true",
            help="take the damaged partitions out of the lake, into its folder .damaged (of a "
            "store: for seven days)",
        ),
    ],
)
def verify(args: argparse.Namespace) -> None:
    from laion_assets.lake import Choice, Verified, find_damage, set_aside
    from laion_assets.settings import load_settings

    lake = opened_lake(load_settings(args.config))
    if unknown := sorted(set(args.asset) - set(lake.assets("*"))):
        raise CommandError(f"{lake} has no {', '.join(unknown)}")
    shares = round(1 / args.share)
    choice = Choice(
        assets=args.asset,
        crawl=args.crawl,
        share=(secrets.randbelow(shares), shares),
        since=args.since,
    )
    partitions, verified, damages = choice.partitions(lake), Verified(), []
    for damage in find_damage(lake, partitions, verified):
        print(damage, flush=True)
        damages.append(damage)
    print(f"{verified}")
    if not damages:
        return
    concerned = {damage.partition for damage in damages}
    todo = "restore the files from a backup, or materialize the partitions again"
    if args.set_aside:
        gone = set_aside(lake, damages)
        for partition in gone:
            print(f"set aside: {partition}")
        todo = f"{len(gone)} partitions were set aside: materialize them again"
    raise CommandError(f"{len(damages)} files of {len(concerned)} partitions are damaged: {todo}")


COMMANDS: Final = (check, crawls, crawl_add, estimate, prune, verify, metrics)
