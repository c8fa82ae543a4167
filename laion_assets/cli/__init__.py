"""``laion-assets``: each stage on plain files without Dagster, and the lake's queries.

Exit code 0 on success, 2 on wrong use, 1 on failure with one clear line. Heavy imports happen
inside the commands that need them, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from laion_assets import __version__
from laion_assets.funnel import StageCounts
from laion_assets.segments import SegmentKey

if TYPE_CHECKING:
    import dagster as dg
    import pyarrow as pa

Command = Callable[[argparse.Namespace], None]


class _ToStandardError(logging.Handler):
    """Log lines as a person at a terminal reads them."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        say(level + record.getMessage())


@contextmanager
def _logging() -> Iterator[None]:
    """Show the package's log on standard error."""
    package, handler = logging.getLogger("laion_assets"), _ToStandardError()
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)


class CommandError(RuntimeError):
    """A failure to tell in one line."""


def say(line: str) -> None:
    """Progress goes to standard error, results to standard output."""
    print(line, file=sys.stderr, flush=True)


def show_counts(counts: StageCounts) -> None:
    for stage, reason, n in counts.rows():
        print(f"{stage:14} {reason:20} {n:>12,}")


def _existing(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise CommandError(f"there is no {path}")


def _holding(found: Sequence[object], what: str, folder: Path) -> None:
    """A folder of something else is not an input of no rows; ``found`` is what is read of it."""
    if not found:
        raise CommandError(f"there are no {what} in {folder}")


def pairs(args: argparse.Namespace) -> None:
    from laion_assets.pairs.extract import extract_files
    from laion_assets.settings import load_settings

    _existing(args.wat)
    rules = load_settings(args.config).pairs
    if args.languages:
        chosen = [] if args.languages == "any" else args.languages.split(",")
        rules = rules.model_copy(update={"languages": chosen})
    for counts in extract_files(args.wat, args.output, rules):
        show_counts(counts)
    print(args.output)


def download(args: argparse.Namespace) -> None:
    from laion_assets.download.segment import download_segment
    from laion_assets.filtering.parts import part_numbers
    from laion_assets.removals.lists import load
    from laion_assets.settings import load_settings

    _existing([args.pairs])
    if args.pairs.is_dir():
        _holding(part_numbers(args.pairs), "pairs (part-*.parquet)", args.pairs)
    options = load_settings(args.config).download
    if args.refetch:
        options = options.model_copy(update={"refetch": args.refetch})
    args.output.mkdir(parents=True, exist_ok=True)
    downloaded = download_segment(
        args.pairs,
        args.output,
        options,
        removals=load(args.removals or Path("/nonexistent")),
        blocklists=load(args.blocklists or Path("/nonexistent")),
        again=bool(args.refetch),
    )
    show_counts(downloaded.counts)
    if downloaded.changed:
        say(f"{downloaded.changed:,} images' bytes are not those recorded before: see _ledger")
    for host, reasons in list(downloaded.hosts.items())[:5]:
        told = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items()))
        say(f"failing host {host}: {told}")
    print(args.output)


def embed(args: argparse.Namespace) -> None:
    from laion_assets.clip.embed import embed_files
    from laion_assets.clip.model import load_clip
    from laion_assets.clip.shards import find_shards
    from laion_assets.settings import load_settings

    _existing(args.shard)
    shards: list[Path] = []
    for path in args.shard:
        found = find_shards(path) if path.is_dir() else [path]
        _holding(found, "shards", path)
        shards += found
    options = load_settings(args.config).clip
    args.output.mkdir(parents=True, exist_ok=True)
    embedded = embed_files(shards, args.output, load_clip(options), options)
    show_counts(embedded.counts)
    say(
        f"{embedded.samples:,} samples embedded in {embedded.seconds:.1f} s, {embedded.rate:.1f}/s"
        f" ({embedded.device}, {embedded.precision})"
    )
    print(args.output)


def filter_(args: argparse.Namespace) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.filtering.parts import part_numbers
    from laion_assets.filtering.subset import filter_embeddings
    from laion_assets.settings import load_settings

    _existing([args.embeddings])
    found = part_numbers(args.embeddings / "metadata", "metadata_*.parquet")
    _holding(found, "embeddings", args.embeddings)
    settings = load_settings(args.config)
    recipe = settings.recipe(args.recipe) if args.recipe else settings.subset
    if args.threshold is not None:
        recipe = recipe.model_copy(update={"threshold": args.threshold})
    args.output.mkdir(parents=True, exist_ok=True)
    show_counts(
        filter_embeddings(
            args.embeddings, args.output, load_clip(settings.clip), settings.safety, recipe
        )
    )
    print(args.output)


def index(args: argparse.Namespace) -> None:
    from laion_assets.knn.build import index_subset
    from laion_assets.knn.subset import subset_parts
    from laion_assets.settings import load_settings

    _existing([args.subset] + ([args.codec] if args.codec else []))
    _holding(subset_parts(args.subset), "samples", args.subset)
    settings = load_settings(args.config)
    args.output.mkdir(parents=True, exist_ok=True)
    summary = index_subset(
        args.subset,
        args.output,
        settings.index,
        model_key=settings.clip.key,
        codec=args.codec,
    )
    for name, value in summary.headline().items():
        print(f"{name:14} {value}")


def search(args: argparse.Namespace) -> None:
    if (args.text is None) == (args.image is None):
        args.parser.error("give a text, or --image FILE")
    _existing([args.index] + ([args.image] if args.image else []))
    from laion_assets.clip.model import load_clip
    from laion_assets.knn.query import search_image, search_text
    from laion_assets.settings import load_settings

    model = load_clip(load_settings(args.config).clip)
    where = (model, args.k, args.over, args.subset)
    if args.image:
        hits = search_image(args.index, args.image, *where)
    else:
        hits = search_text(args.index, args.text, *where)
    for hit in hits:
        print(f"{hit.rank:2}  {hit.score:.3f}  {hit.text}\n           {hit.url}")


def serve(args: argparse.Namespace) -> None:
    _existing([args.index])
    from laion_assets.search.serve import serve_index
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    serve_index(
        args.index,
        settings.serve.listening_on(args.host, args.port),
        settings.clip,
        settings.download,
        subset=args.subset,
    )


def sql(args: argparse.Namespace) -> None:
    from laion_assets.lake import LocalLake
    from laion_assets.settings import load_settings
    from laion_assets.stats.catalog import query

    catalog = args.catalog
    if catalog is None:
        lake = LocalLake(load_settings(args.config).lake)
        catalog = lake.folder("catalog") / "catalog.duckdb"
    if not catalog.exists():
        raise CommandError(f"there is no {catalog}: materialize the asset `catalog`, or --catalog")
    table = query(catalog, args.statement)
    if args.format == "csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(_flat(table), sys.stdout.buffer)
        return
    if args.format == "json":
        _print_json(table)
        return
    columns = table.column_names
    rows = [[_cell(value) for value in row.values()] for row in table.to_pylist()]
    widths = [max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(columns)]
    for row in [columns, ["─" * width for width in widths], *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _print_json(table: pa.Table) -> None:
    """An array with an object a line."""
    between = "["
    for batch in table.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            print(between + _json(row), end="")
            between = ",\n "
    print("[]" if between == "[" else "]")


def _flat(table: pa.Table) -> pa.Table:
    """With JSON in the columns that hold what a CSV has no cells for."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_nested(kind) or pa.types.is_interval(kind) or pa.types.is_binary(kind):
            values = table[number].to_pylist()
            texts = [
                None if v is None else v.hex() if isinstance(v, bytes) else _json(v) for v in values
            ]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    return table


def _json(value: object) -> str:
    import json

    return json.dumps(_json_value(value), ensure_ascii=False, allow_nan=False)


def _json_value(value: object) -> object:
    import math
    from decimal import Decimal

    if isinstance(value, Decimal):  # a sum of integers is one, too
        whole = value.is_finite() and value == value.to_integral_value()
        return int(value) if whole else _json_value(float(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON knows no NaN and no infinity
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list) or type(value) is tuple:  # an interval is a tuple with names
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("\n", " ")


def export(args: argparse.Namespace) -> None:
    from laion_assets.lake import LocalLake, local_lake
    from laion_assets.release.export import LICENSES, About
    from laion_assets.release.export import export as write_release
    from laion_assets.removals.active import read_lists
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    if args.verify:
        from laion_assets.release.verify import verify

        _existing([args.output])
        lake = LocalLake(settings.lake)
        lists = read_lists(lake.root) if lake.root.is_dir() else None
        if lists is None:
            say(f"there is no lake {lake}: what its lists name is not looked for")
        problems = verify(args.output, lists)
        for problem in problems:
            print(problem)
        if problems:
            raise CommandError(f"{args.output} is not a sound release")
        print(f"{args.output} is a sound release")
        return
    lake = local_lake(settings.lake)
    if args.license and args.license not in LICENSES:
        args.parser.error(f"--license is one of {', '.join(LICENSES)}")
    words = {"name": args.name, "url": args.url, "license_id": args.license}
    given = {name: value for name, value in words.items() if value}
    about = About(version=args.release, contact=settings.download.contact, **given)
    if not args.url:
        say(f"no --url: croissant.json will say that it is published at {about.url}")
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


def why(args: argparse.Namespace) -> None:
    from laion_assets.lake import local_lake
    from laion_assets.settings import load_settings
    from laion_assets.stats import why as stories

    options = load_settings(args.config).lake
    if args.lake:
        options = options.model_copy(update={"root": str(args.lake)})
    lake = local_lake(options)
    try:
        answer = stories.why(lake, args.what)
    except stories.NotAskableError as error:
        args.parser.error(str(error))
    if not answer:
        raise CommandError(f"nothing is known of {args.what} in {lake}")
    for line in answer.lines():
        print(line)


def crawls(args: argparse.Namespace) -> None:
    from laion_assets.crawl.source import CrawlSource
    from laion_assets.settings import load_settings

    for info in CrawlSource(load_settings(args.config).crawl_source).crawls():
        print(f"{info.name:20} {info.title}")


def _instance() -> dg.DagsterInstance:
    import dagster as dg
    from dagster._core.errors import DagsterHomeNotSetError

    try:
        instance = dg.DagsterInstance.get()
    except DagsterHomeNotSetError:
        instance = None
    if instance is None or instance.is_ephemeral:
        raise CommandError("set DAGSTER_HOME to the folder of the deployment's Dagster instance")
    return instance


def crawl_add(args: argparse.Namespace) -> None:
    from laion_assets.crawl.source import CrawlSource
    from laion_assets.defs.partitions import crawls as partitions
    from laion_assets.segments import CRAWL_NAME
    from laion_assets.settings import load_settings

    if not CRAWL_NAME.fullmatch(args.crawl):
        args.parser.error(f"{args.crawl!r} is not a crawl's name like CC-MAIN-2024-22")
    source = CrawlSource(load_settings(args.config).crawl_source)
    segments = source.segments(args.crawl)
    instance = _instance()
    instance.add_dynamic_partitions(partitions.name or "", [args.crawl])
    print(f"{args.crawl} is added, with {len(segments)} segments")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


ENTRY_KINDS = ("url", "host", "sha256", "md5", "url-sha256", "url-md5", "sample-id")


def _entry(kind: str, value: str) -> tuple[str, str]:
    return kind, value


def fetch(args: argparse.Namespace) -> None:
    from laion_assets.lake import open_lake
    from laion_assets.settings import load_settings

    lake = open_lake(load_settings(args.config).lake)
    for asset in args.asset:
        print(f"{asset}: {lake.fetch_all(asset, args.names)}")


def remove(args: argparse.Namespace) -> None:
    from laion_assets.defs.removal.survey import survey
    from laion_assets.lake import local_lake
    from laion_assets.removals.active import Lists, read_lists
    from laion_assets.removals.lists import ListError, parse
    from laion_assets.removals.requests import add
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    lake = local_lake(settings.lake)
    if args.ledger:
        _show_ledger(lake.root)
        return
    entries = [f"{kind}:{value}" for kind, value in args.entries or ()]
    if not entries and not args.apply:
        args.parser.error("give what to remove, or --apply, or --ledger")
    try:
        asked = parse(entries, "the command line")
    except ListError as error:
        args.parser.error(str(error))
    for entry in add(lake.root / "removals", entries, args.reason):
        print(f"added  {entry}")
    if args.apply:
        _apply_lists(args)
        return
    found = survey(lake, read_lists(lake.root), new=Lists(removals=asked))
    _show_survey(found.samples, found.aggregate)
    if found.keys:
        by_itself = settings.removals.automatic
        print(
            "Nothing is taken out yet. lists_sensor tells Dagster within a minute or two which\n"
            "partitions are stale"
            + (
                " and asks for them ([removals] automatic)."
                if by_itself
                else "; materialize them, or: laion-assets remove --apply"
            )
        )


def _apply_lists(args: argparse.Namespace) -> None:
    import warnings

    import dagster as dg

    warnings.filterwarnings("ignore", category=dg.BetaWarning)
    from laion_assets.definitions import build_defs
    from laion_assets.defs.removal.remake import apply, observe
    from laion_assets.lake import local_lake
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    instance = _instance()
    lake = local_lake(settings.lake)
    found = observe(lake, instance)
    _show_survey(found.samples, found.aggregate)
    apply(lake, instance, build_defs(settings), found)
    left = observe(lake, instance)
    if left.keys or left.aggregate:
        _show_survey(left.samples, left.aggregate)
        raise CommandError("listed samples are left; see the runs in Dagster's UI")
    print("nothing that the lists name is left in the lake")


def _show_survey(samples: Mapping[SegmentKey, Counter[str]], aggregate: int) -> None:
    for key, of_key in sorted(samples.items()):
        for asset, n in of_key.items():
            print(f"{key!s:22} {asset:16} {n:>10,}")
    if aggregate:
        print(f"{'all segments':22} {'search_index':16} {aggregate:>10,}")
    if not samples and not aggregate:
        print("no partition holds what is listed")


def _show_ledger(lake: Path) -> None:
    from laion_assets.removals.ledger import read_ledger

    for event in read_ledger(lake):
        print(
            f"{event.at}  {event.event:9}  {event.crawl}|{event.segment}  {event.asset:14}"
            f"  {event.list:10}  {event.samples:>8,}  {event.entry}  {event.run_id}"
        )


def prune_(args: argparse.Namespace) -> None:
    from laion_assets.defs.retention import prune
    from laion_assets.settings import load_settings

    pruned = prune(_instance(), load_settings(args.config).retention, dry_run=args.dry_run)
    print(f"{'would delete' if args.dry_run else 'deleted'}: {pruned}")


def metrics(args: argparse.Namespace) -> None:
    from laion_assets.defs.prometheus import export

    export(_instance(), port=args.port, host=args.host, textfile=args.textfile, every_s=args.every)


def dalle(args: argparse.Namespace) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.generation import require_extra
    from laion_assets.settings import load_settings

    _existing([args.subset, args.shards])
    require_extra()
    from laion_assets.generation.dalle import make_samples
    from laion_assets.generation.pairs import find_shards

    settings = load_settings(args.config)
    args.output.mkdir(parents=True, exist_ok=True)
    evaluation = make_samples(
        find_shards(args.subset, args.shards),
        args.output,
        settings.generation,
        load_clip(settings.clip),
    )
    for what, mean in evaluation.rows():
        print(f"{what:40} {mean}")
    print(args.output)


def draw(args: argparse.Namespace) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.files import atomic_path
    from laion_assets.generation import require_extra
    from laion_assets.settings import load_settings

    _existing([args.model / "options.json"])
    require_extra()
    from laion_assets.generation.drawing import draw_caption
    from laion_assets.generation.pictures import caption_grid

    settings = load_settings(args.config)
    clip = load_clip(settings.clip)
    drawn = draw_caption(args.model, args.caption, clip, args.seed, settings.generation.device)
    with atomic_path(args.output) as beside:
        beside.write_bytes(caption_grid(drawn, None, min(8, len(drawn.cosines))))
    print(args.output)


def sample_crawl_serve(args: argparse.Namespace) -> None:
    from laion_assets.sample_crawl.build import build_sample_crawl
    from laion_assets.sample_crawl.server import serve

    build_sample_crawl(args.root)
    serve(args.root, args.port)


def _prepare_demo(args: argparse.Namespace) -> None:
    """What the demo's own processes and Dagster's must agree on: where they are, which settings."""
    import signal
    import warnings

    from laion_assets.processes import signal_at_parents_end
    from laion_assets.settings import CONFIG_VARIABLE, shipped_config

    if args.end_with_parent:
        signal_at_parents_end(signal.SIGTERM)
    config = args.config or (None if args.world == "sample" else shipped_config(args.world))
    if config:
        os.environ[CONFIG_VARIABLE] = str(config.absolute())
    args.root = args.root.absolute()
    os.chdir(args.root)

    import dagster as dg

    # Dagster warns of each beta feature at each start; the graph uses one knowingly.
    warnings.filterwarnings("ignore", category=dg.BetaWarning)


def demo(args: argparse.Namespace) -> None:
    _prepare_demo(args)
    from laion_assets.demo.show import run_demo
    from laion_assets.demo.world import Places

    run_demo(Places(args.root, args.world), args.port)


def ui(args: argparse.Namespace) -> None:
    _prepare_demo(args)
    from laion_assets.demo.show import run_ui
    from laion_assets.demo.world import Places

    run_ui(Places(args.root, args.world), args.port)


def search_page(args: argparse.Namespace) -> None:
    _prepare_demo(args)
    from laion_assets.demo.show import run_search_page
    from laion_assets.demo.world import Places

    run_search_page(Places(args.root, args.world), args.port)


@dataclass(frozen=True)
class _Word:
    """One sub-command's name, help and example."""

    name: str
    help: str
    example: str
    run: Command


def _add(commands: argparse._SubParsersAction, word: _Word) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    parser: argparse.ArgumentParser = commands.add_parser(
        word.name,
        help=word.help,
        description=word.help,
        epilog=f"example: laion-assets {word.example}",
    )
    parser.set_defaults(run=word.run, parser=parser)
    parser.add_argument("--config", type=Path, help="settings file (else LAION_ASSETS_CONFIG)")
    return parser


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laion-assets",
        description="Make, keep and search a LAION-400M-like dataset.",
        epilog='example: laion-assets sql "select stage, reason, n from funnel order by 1, 2"',
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    word = _add(
        commands,
        _Word("pairs", "WAT files to pairs", "pairs FILE.warc.wat.gz -o pairs.parquet", pairs),
    )
    word.add_argument("wat", type=Path, nargs="+")
    word.add_argument("--languages", help="comma-separated ISO 639-1 codes, or any")
    _output(word)

    word = _add(
        commands,
        _Word("download", "pairs to image shards", "download pairs.parquet -o shards/", download),
    )
    word.add_argument("pairs", type=Path, help="a parquet file, or a folder of parts")
    word.add_argument("--removals", type=Path, help="folder of removal lists")
    word.add_argument("--blocklists", type=Path, help="folder of blocklists")
    word.add_argument(
        "--refetch",
        choices=("passing", "all"),
        help="ask again for what failed for a passing reason, or for all, of shards that are done",
    )
    _output(word)

    word = _add(
        commands, _Word("embed", "image shards to embeddings", "embed shards/ -o emb/", embed)
    )
    word.add_argument("shard", type=Path, nargs="+", help="a tar, or a folder of shards")
    _output(word)

    word = _add(
        commands,
        _Word("filter", "embeddings to a filtered subset", "filter emb/ -o subset/", filter_),
    )
    word.add_argument("embeddings", type=Path)
    word.add_argument("--recipe", help="a recipe's name: shipped, or of the settings file")
    word.add_argument("--threshold", type=float, help="cosine, instead of the recipe's")
    _output(word)

    word = _add(commands, _Word("index", "a subset to kNN indices", "index subset/ -o idx/", index))
    word.add_argument("subset", type=Path)
    word.add_argument("--codec", type=Path, help="a codec's folder, instead of one trained here")
    _output(word)

    word = _add(
        commands,
        _Word(
            "search",
            "search an index by text or image",
            'search .demo/lake/search_index "a red apple"',
            search,
        ),
    )
    word.add_argument("index", type=Path)
    word.add_argument("text", nargs="?")
    word.add_argument("--image", type=Path)
    word.add_argument("--over", choices=["image", "text"], default="image")
    word.add_argument("--subset", type=Path, help="the indexed subset, if not the lake's")
    word.add_argument("-k", type=int, default=5)

    word = _add(
        commands,
        _Word("serve", "the search service and its page", "serve .demo/lake/search_index", serve),
    )
    word.add_argument("index", type=Path)
    word.add_argument("--subset", type=Path, help="the indexed subset, if not the lake's")
    word.add_argument("--host", help="address to listen on (default: loopback)")
    word.add_argument("--port", type=int)

    word = _add(
        commands,
        _Word("sql", "ask the catalog", 'sql "from resolution_table()"', sql),
    )
    word.add_argument("statement")
    word.add_argument("--catalog", type=Path)
    word.add_argument("--format", choices=["table", "csv", "json"], default="table")
    for name in ("csv", "json"):
        told = f"the same as --format {name}"
        word.add_argument(f"--{name}", dest="format", action="store_const", const=name, help=told)

    word = _add(
        commands,
        _Word(
            "export", "the subset as a release that others can load", "export -o release/", export
        ),
    )
    _output(word)
    word.add_argument("--files", type=_positive, default=32, help="of metadata (default: 32)")
    word.add_argument("--without-indices", action="store_true", help="build no faiss indices")
    word.add_argument("--name", help="of the dataset")
    word.add_argument("--url", help="where it is published")
    word.add_argument("--license", metavar="NAME", help="of the metadata (default: cc-by-4.0)")
    word.add_argument("--release", default="1.0.0", metavar="VERSION", help="default: 1.0.0")
    word.add_argument(
        "--verify", action="store_true", help="look a release through instead, the lists included"
    )

    word = _add(
        commands,
        _Word("why", "the whole story of one pair", "why https://example.org/apple.jpg", why),
    )
    word.add_argument("what", metavar="URL", help="or a SAMPLE_ID, or an image's SHA-256 or MD5")
    word.add_argument("--lake", type=Path, help="its folder, if not the settings'")

    word = _add(
        commands,
        _Word(
            "fetch",
            "copy what is published from a lake in an object store to its cache here",
            "fetch search_index filtered_subset catalog",
            fetch,
        ),
    )
    word.add_argument("asset", nargs="+")
    word.add_argument("--names", default="*", help='only files of these names, like "*.parquet"')

    _add(commands, _Word("crawls", "the crawls that the source lists", "crawls", crawls))

    crawl = commands.add_parser("crawl", help="crawls of this deployment")
    crawl_commands = crawl.add_subparsers(metavar="COMMAND", required=True)
    word = _add(
        crawl_commands,
        _Word("add", "add a crawl's partitions", "crawl add CC-MAIN-2024-22", crawl_add),
    )
    word.add_argument("crawl")

    word = _add(
        commands,
        _Word(
            "remove",
            "take samples out of everything",
            "remove --url https://example.org/me.jpg --reason 'request 17' --apply",
            remove,
        ),
    )
    for kind in ENTRY_KINDS:
        word.add_argument(
            f"--{kind}",
            dest="entries",
            action="append",
            type=partial(_entry, kind),
            metavar=kind.upper(),
            help="may be repeated",
        )
    word.add_argument("--reason", help="goes into the list as a comment")
    word.add_argument(
        "--apply", action="store_true", help="make all that the lists concern again, now"
    )
    word.add_argument(
        "--ledger", action="store_true", help="show what was taken out, when and by which list"
    )

    word = _add(
        commands, _Word("prune", "delete old runs' logs from Dagster's storage", "prune", prune_)
    )
    word.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")

    word = _add(
        commands,
        _Word("metrics", "the stages' rates for Prometheus", "metrics --port 9464", metrics),
    )
    word.add_argument("--host", default="127.0.0.1", help="address to listen on")
    word.add_argument("--port", type=int, default=9464)
    word.add_argument("--textfile", type=Path, help="write this file instead of serving")
    word.add_argument("--every", type=float, default=60.0, help="seconds between two looks")

    word = _add(
        commands,
        _Word(
            "dalle",
            "train a small DALL-E on a segment's subset, and draw with it",
            "dalle .demo/lake/filtered_subset/crawl=CC-MAIN-2000-05/segment=00"
            " .demo/lake/image_shards/crawl=CC-MAIN-2000-05/segment=00 -o dalle",
            dalle,
        ),
    )
    word.add_argument("subset", type=Path, metavar="SUBSET", help="a segment's filtered_subset")
    word.add_argument("shards", type=Path, metavar="SHARDS", help="the segment's image_shards")
    _output(word)

    word = _add(
        commands,
        _Word(
            "draw",
            "draw a caption with a trained small DALL-E",
            'draw .demo/drawn/lake/dalle_samples "A red heart on a blue background" -o heart.png',
            draw,
        ),
    )
    word.add_argument("model", type=Path, metavar="DIR", help="what `dalle` has written")
    word.add_argument("caption", metavar="CAPTION")
    word.add_argument("--seed", type=int, default=0, help="another one draws other pictures")
    _output(word)

    sample = commands.add_parser("sample-crawl", help="the sample crawl")
    sample_commands = sample.add_subparsers(metavar="COMMAND", required=True)
    word = _add(
        sample_commands,
        _Word("serve", "build and serve it", "sample-crawl serve", sample_crawl_serve),
    )
    word.add_argument("--root", type=Path, default=Path(".demo/crawl"))
    word.add_argument("--port", type=int, default=8799)

    for name, text, run, port, of in (
        ("demo", "make everything from the sample crawl, through Dagster", demo, 3000, "its UI"),
        ("ui", "Dagster's UI on the demo's instance", ui, 3000, "the UI"),
        ("search-page", "the search page over the demo's index", search_page, None, "the page"),
    ):
        word = _add(commands, _Word(name, text, name, run))
        word.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout")
        word.add_argument("--port", type=int, default=port, help=f"port of {of}")
        word.add_argument(
            "--world",
            choices=("sample", "drawn"),
            default="sample",
            help="drawn: a larger crawl of drawings, and dalle_samples trained on it",
        )
        word.add_argument(
            "--end-with-parent",
            action="store_true",
            help="end when the process that started this one ends, as make's commands should",
        )
    return parser


def _reader_left() -> bool:
    """Whether what reads our output has seen enough, as `| head` does."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    # Asked to end, a command cleans up as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _logging():
            args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where this one stopped")
        return 130
    except Exception as error:  # noqa: BLE001 - the command line's last resort tells one line
        if isinstance(error, BrokenPipeError) and _reader_left():
            # The interpreter's own flush at exit must not fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        name = "" if isinstance(error, CommandError) else f"{type(error).__name__}: "
        say(f"laion-assets: {name}{error}")
        return 1
    return 0
