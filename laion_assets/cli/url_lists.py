"""URL lists as inputs of commands: their options, and the pairs that are made of them."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from laion_assets.cli.common import argument, say, show_counts

if TYPE_CHECKING:
    from laion_assets.pairs.rules import PairRules
    from laion_assets.settings import Settings
    from laion_assets.url_lists.options import ReadOptions

LIST_HELP: Final = (
    "parquet, CSV, TSV, JSON lines or text (a URL a line), each also as .gz or .zst; a folder of "
    "these, a quoted pattern, or an fsspec URL"
)
LANGUAGES: Final = argument(
    "--languages",
    metavar="CODES",
    help="wanted languages: comma-separated ISO 639-1 codes, or any (default: [pairs] languages)",
)
LIST_ARGUMENTS: Final = (
    argument(
        "--url-column",
        default="",
        metavar="NAME",
        help="column of a list's image URLs (default: url, image_url and other known names)",
    ),
    argument(
        "--text-column",
        default="",
        metavar="NAME",
        help="column of a list's captions (default: text, caption, alt and other known names)",
    ),
    argument(
        "--no-captions",
        dest="captions",
        action="store_false",
        help="take a list's images alone, without text and similarity",
    ),
    argument(
        "--list-format",
        choices=("parquet", "csv", "tsv", "json", "txt"),
        help="format of a list's files (default: by their names)",
    ),
    argument(
        "--encoding",
        choices=("utf-8", "latin-1", "utf-16"),
        default="",
        help="encoding of a list's text files (default: by their bytes)",
    ),
)


def read_options(args: argparse.Namespace) -> ReadOptions:
    """How the command's lists are read."""
    from laion_assets.url_lists.options import ReadOptions

    if args.text_column and not args.captions:
        args.parser.error("--text-column names captions, and --no-captions takes none")
    return ReadOptions(
        url=args.url_column,
        text=args.text_column,
        captions=args.captions,
        format=args.list_format,
        encoding=args.encoding,
    )


def must_be_lists(args: argparse.Namespace, places: Sequence[str]) -> None:
    """Raise ``UrlListError`` for the first place that does not exist or holds no list."""
    from laion_assets.url_lists.files import find_files

    find_files(places, read_options(args))


def rules_of(args: argparse.Namespace, settings: Settings) -> PairRules:
    """The settings' pair rules, for the languages that the command names."""
    if not args.languages:
        return settings.pairs
    chosen = [] if args.languages == "any" else args.languages.split(",")
    return settings.pairs.model_copy(update={"languages": chosen})


def write_pairs(args: argparse.Namespace, places: Sequence[str], out: Path) -> None:
    """Write the pairs of a list; say how its columns were taken, and show the counts."""
    from laion_assets.settings import load_settings
    from laion_assets.url_lists.url_list import pairs_of_list

    settings = load_settings(args.config)
    made = pairs_of_list(
        places,
        out,
        rules_of(args, settings),
        read_options(args),
        workers=settings.work.workers,
    )
    say(str(made))
    if made.columns.text is None:
        say(
            "without captions there is nothing to compare the images with: no similarity "
            "to filter by, and a search finds them by the image alone"
            + (". --text-column names captions" if args.captions else "")
        )
    show_counts(made.counts)


def pairs_beside(args: argparse.Namespace, places: Sequence[str], out: Path) -> Path:
    """The pairs of a list, made once for the folder ``out`` of what is made of them.

    They are made again once the list's files, how they are read, or the rules have changed.
    """
    from laion_assets.settings import load_settings
    from laion_assets.url_lists.files import find_files

    options = read_options(args)
    rules = rules_of(args, load_settings(args.config))
    files = [(file.url, file.version) for file in find_files(places, options)]
    made_of = json.dumps([files, options.model_dump(), rules.model_dump()], sort_keys=True)
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    pairs = out / ".pairs" / f"{digest}.parquet"
    if pairs.exists():
        say(f"the pairs of {', '.join(places)} are those of an earlier call")
        return pairs
    write_pairs(args, places, pairs)
    for other in pairs.parent.glob("*.parquet"):
        if other != pairs:
            other.unlink()
    return pairs


def is_of_pairs(place: str) -> bool:
    """Whether a place holds pairs as the command ``pairs`` writes them, and is no list."""
    import pyarrow.parquet as pq

    from laion_assets.layout import PAIR_PARQUET, PARTITIONS
    from laion_assets.schemas import PAIRS

    path = Path(place)
    files = PARTITIONS[PAIR_PARQUET].rows.paths(path) if path.is_dir() else [path]
    if not files or files[0].suffix != ".parquet" or not files[0].is_file():
        return False
    schema = pq.read_schema(files[0])
    return all(
        name in schema.names and schema.field(name).type == PAIRS.field(name).type
        for name in ("uid", "url", "text")
    )
