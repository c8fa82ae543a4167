"""Commands that copy what the lake holds, or take samples out of it."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from laion_assets.cli.common import (
    CommandError,
    argument,
    command,
    dagster_instance,
    ignore_beta_warnings,
    must_exist,
    opened_lake,
    output,
    positive,
    say,
)

if TYPE_CHECKING:
    from laion_assets.defs.removal.survey import Survey
    from laion_assets.lake import Lake
    from laion_assets.settings import Settings


@command(
    "export",
    "write the subset as a release that others can load",
    about="""
Write the lake's subset as a release: metadata, embeddings, faiss indices, a
dataset card, Croissant metadata, a manifest and checksums. Samples that a
removal list or a blocklist names are left out. An interrupted export continues
where it stopped; the folder appears when it is complete.
""",
    example="export -o release/ --url https://example.org/my-dataset",
    arguments=[
        argument(
            "--files",
            type=positive,
            default=32,
            metavar="N",
            help="number of metadata files (default: 32)",
        ),
        argument("--without-indices", action="store_true", help="build no faiss indices"),
        argument("--name", metavar="NAME", help="name of the dataset"),
        argument("--url", metavar="URL", help="address where the release will be published"),
        argument(
            "--license",
            metavar="NAME",
            help="licence of the metadata, by its name on the Hugging Face hub "
            "(default: cc-by-4.0)",
        ),
        argument(
            "--release",
            default="1.0.0",
            metavar="VERSION",
            help="version of the release (default: 1.0.0)",
        ),
        argument(
            "--verify",
            action="store_true",
            help="check an existing release, removal lists included, instead of writing one",
        ),
        output("FOLDER", "folder of the release"),
    ],
)
def export(args: argparse.Namespace) -> None:
    from laion_assets.release.export import LICENSES, About
    from laion_assets.release.export import export as write_release
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    if args.verify:
        _verify(settings, args.output)
        return
    lake = opened_lake(settings)
    if args.license and args.license not in LICENSES:
        args.parser.error(f"--license must be one of {', '.join(LICENSES)}")
    words = {"name": args.name, "url": args.url, "license_id": args.license}
    given = {name: value for name, value in words.items() if value}
    about = About(version=args.release, contact=settings.download.contact, **given)
    if not args.url:
        say(f"no --url given: croissant.json will say that the release is at {about.url}")
    manifest = write_release(
        lake,
        args.output,
        files=args.files,
        about=about,
        index=None if args.without_indices else settings.index,
    )
    for name in ("samples", "left_out", "files"):
        value = manifest[name]
        print(f"{name:14} {len(value) if name == 'files' else value}")
    print(args.output)


def _verify(settings: Settings, release: Path) -> None:
    from laion_assets.lake import LakeError
    from laion_assets.release.verify import verify
    from laion_assets.removals.active import FOLDERS, read_lists

    must_exist(release)
    try:
        lists = read_lists(opened_lake(settings).current(*FOLDERS))
    except LakeError as error:
        lists = None
        say(f"the release is not checked against the lake's lists: {error}")
    problems = verify(release, lists)
    for problem in problems:
        print(problem)
    if problems:
        raise CommandError(f"{release} is not a sound release")
    print(f"{release} is a sound release")


@command(
    "fetch",
    "copy published assets from an object store to this machine",
    about="""
Copy the published partitions of assets from a lake in an object store to this
machine's cache ([lake] cache in the settings), which can then be read as a
lake.
""",
    example="fetch search_index filtered_subset catalog",
    arguments=[
        argument("asset", nargs="+", metavar="ASSET", help="name of an asset"),
        argument(
            "--names",
            default="*",
            metavar="PATTERN",
            help='copy only files whose name matches, such as "*.parquet"',
        ),
    ],
)
def fetch(args: argparse.Namespace) -> None:
    from laion_assets.lake import NotPublishedError, open_lake
    from laion_assets.layout import OVER_ALL, SEGMENT_ASSETS, SUBSET_PREFIX
    from laion_assets.settings import load_settings

    known = [*SEGMENT_ASSETS, *OVER_ALL]
    lake = open_lake(load_settings(args.config).lake)
    for asset in args.asset:
        try:
            print(f"{asset}: {lake.fetch_all(asset, args.names)}")
        except NotPublishedError as error:
            if asset in known or asset.startswith(SUBSET_PREFIX):
                raise
            names = ", ".join(known)
            raise CommandError(f"there is no asset {asset}; known: {names}") from error


_ENTRIES: Final = {
    "url": ("URL", "every pair of this image URL"),
    "host": ("HOST", "every pair whose image is on this host or a sub-domain of it"),
    "sha256": ("DIGEST", "every pair whose image file has this SHA-256"),
    "md5": ("DIGEST", "every pair whose image file has this MD5"),
    "url-sha256": (
        "DIGEST",
        "every pair whose image URL has this SHA-256; the list then does not hold the URL itself",
    ),
    "url-md5": ("DIGEST", "every pair whose image URL has this MD5"),
    "sample-id": ("ID", "the one pair with this SAMPLE_ID"),
}
"""Kind of a removal list's entry -> metavar and help of its option."""


def _entry(kind: str, value: str) -> tuple[str, str]:
    return kind, value


@command(
    "remove",
    "take samples out of the whole dataset",
    about="""
Add entries to the lake's removal lists, and show which partitions hold how many
of their samples. With --apply, also rebuild these partitions and all that was
built from them, which needs DAGSTER_HOME. --apply without an entry applies the
lists as they are; run it again if it was interrupted. Options that name samples
may be repeated and combined.
""",
    example="remove --url https://example.org/me.jpg \\\n    --reason 'request 17' --apply",
    arguments=[
        *(
            argument(
                f"--{kind}",
                dest="entries",
                action="append",
                type=partial(_entry, kind),
                metavar=metavar,
                help=help_text,
            )
            for kind, (metavar, help_text) in _ENTRIES.items()
        ),
        argument("--reason", metavar="TEXT", help="comment written above the entries in the list"),
        argument(
            "--apply",
            action="store_true",
            help="rebuild everything that holds a listed sample, now",
        ),
        argument(
            "--ledger",
            action="store_true",
            help="show what has been removed, when and by which list",
        ),
    ],
)
def remove(args: argparse.Namespace) -> None:
    from laion_assets.defs.removal.survey import survey
    from laion_assets.layout import REMOVALS
    from laion_assets.removals.active import FOLDERS, Lists, read_lists
    from laion_assets.removals.entries import parse
    from laion_assets.removals.entry import ListError
    from laion_assets.removals.requests import REQUESTS, add
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    lake = opened_lake(settings)
    if args.ledger:
        _show_ledger(lake)
        return
    entries = [f"{kind}:{value}" for kind, value in args.entries or ()]
    if not entries and not args.apply:
        args.parser.error("name samples to remove, or give --apply or --ledger")
    try:
        asked = parse(entries, "the command line")
    except ListError as error:
        args.parser.error(str(error))
    added = lake.update(
        f"{REMOVALS}/{REQUESTS}", lambda root: add(root / REMOVALS, entries, args.reason)
    )
    for entry in added:
        print(f"added  {entry}")
    if args.apply:
        _apply_lists(settings, lake)
        return
    found = survey(lake, read_lists(lake.current(*FOLDERS)), new=Lists(removals=asked))
    _show_survey(found)
    if found.keys:
        print(
            "Nothing is taken out yet. Within a minute or two lists_sensor marks these partitions\n"
            "stale"
            + (
                " and has them rebuilt ([removals] automatic)."
                if settings.removals.automatic
                else ". Then materialize them, or run: laion-assets remove --apply"
            )
        )


def _apply_lists(settings: Settings, lake: Lake) -> None:
    """Rebuild what the lists concern. Raises :class:`CommandError` if listed samples are left."""
    instance = dagster_instance()
    ignore_beta_warnings()
    from laion_assets.defs.build import build_defs
    from laion_assets.defs.removal.remake import apply, observe

    found = observe(lake, instance)
    _show_survey(found)
    apply(lake, instance, build_defs(settings), found)
    left = observe(lake, instance)
    if left.keys or left.aggregate:
        _show_survey(left)
        raise CommandError("some listed samples are left: see the runs in Dagster's UI")
    print("nothing that the lists name is left in the lake")


def _show_survey(found: Survey) -> None:
    """Print how many listed samples each partition holds."""
    from laion_assets.layout import IMAGE_SHARDS, SEARCH_INDEX

    for key, of_key in sorted(found.samples.items()):
        for asset, n in of_key.items():
            print(f"{key!s:22} {asset:16} {n:>10,}")
    if found.aggregate:
        print(f"{'all segments':22} {SEARCH_INDEX:16} {found.aggregate:>10,}")
    for key, assets in sorted(found.damaged.items()):
        for asset in sorted(assets):
            # The rows of the images say which key each sample has, for ever.
            kept = asset == IMAGE_SHARDS
            does = "restore it, or set it aside" if kept else "--apply rebuilds it"
            print(f"{key!s:22} {asset:16} damaged: it may hold listed samples; {does}")
    if not found.samples and not found.aggregate and not found.damaged:
        print("no partition holds a listed sample")


def _show_ledger(lake: Lake) -> None:
    from laion_assets.removals.ledger import EVENTS, read_ledger

    for event in read_ledger(lake.current(EVENTS, deep=True)):
        print(
            f"{event.at}  {event.event:9}  {event.crawl}|{event.segment}  {event.asset:14}"
            f"  {event.list:10}  {event.samples:>8,}  {event.entry}  {event.run_id}"
        )


COMMANDS: Final = (export, fetch, remove)
