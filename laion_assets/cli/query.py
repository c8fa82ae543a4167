"""Commands that ask an index, the catalog or the lake, and change nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from laion_assets.cli.common import (
    CommandError,
    argument,
    command,
    must_exist,
    must_hold,
    opened_lake,
)

if TYPE_CHECKING:
    from laion_assets.clip.identity import ModelIdentity
    from laion_assets.lake import Lake

_INDEX: Final = argument(
    "index", type=Path, metavar="INDEX", help="folder of an index, such as lake/search_index"
)
_SUBSET: Final = argument(
    "--subset",
    type=Path,
    metavar="FOLDER",
    help="the indexed subset; only needed for an index outside a lake",
)


@command(
    "search",
    "find samples by a text or an image",
    about="""
Print the samples of an index that are nearest to a text or an image: rank,
similarity, caption and URL. The model, [clip] in the settings, must be the one
that the index was built with.
""",
    example='search .demo/lake/search_index "a red apple"',
    arguments=[
        _INDEX,
        argument("text", nargs="?", metavar="TEXT", help="text to search by"),
        argument("--image", type=Path, metavar="FILE", help="image to search by, instead of TEXT"),
        argument(
            "--over",
            choices=["image", "text"],
            default="image",
            help="search the samples' images or their texts (default: image)",
        ),
        _SUBSET,
        argument("-k", type=int, default=5, metavar="N", help="number of results (default: 5)"),
    ],
)
def search(args: argparse.Namespace) -> None:
    if (args.text is None) == (args.image is None):
        args.parser.error("give either TEXT or --image FILE")
    must_exist(args.index, args.image, args.subset)
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


@command(
    "serve",
    "run the search service and its web page",
    about="""
Serve an index over HTTP, with a search page and clip-retrieval's API, until
interrupted. The service has no login of its own: put an authenticating proxy
in front of it before others can reach it. Its limits are [serve] in the
settings. From a lake in an object store the index and the subset are copied to
this machine first; the service takes up a newer index once `fetch` has copied
it.
""",
    example="serve .demo/lake/search_index --port 9000",
    arguments=[
        argument(
            "index",
            nargs="?",
            type=Path,
            metavar="INDEX",
            help="folder of an index (default: search_index of the settings' lake)",
        ),
        _SUBSET,
        argument("--host", help="address to listen on (default: [serve] host)"),
        argument("--port", type=int, help="port to listen on (default: [serve] port)"),
    ],
)
def serve(args: argparse.Namespace) -> None:
    must_exist(args.index, args.subset)
    from laion_assets.layout import SEARCH_INDEX
    from laion_assets.search.serve import serve_index
    from laion_assets.settings import load_settings

    settings = load_settings(args.config)
    index = args.index
    if index is None:
        lake = opened_lake(settings)
        index = lake.published(SEARCH_INDEX)
        _fetch_beside_index(lake)
    serve_index(
        index,
        settings.serve.listening_on(args.host, args.port),
        settings.clip,
        settings.download,
        subset=args.subset,
        heads=settings.heads,
    )


def _fetch_beside_index(lake: Lake) -> None:
    """Have on this machine what the service reads of a lake beside the index."""
    from laion_assets.layout import DALLE_SAMPLES, FILTERED_SUBSET, NEAR_DUPLICATES
    from laion_assets.near_duplicates.segment import BY_SAMPLE
    from laion_assets.removals.active import FOLDERS

    lake.fetch_all(FILTERED_SUBSET)
    if lake.segments(NEAR_DUPLICATES):
        lake.fetch_all(NEAR_DUPLICATES, BY_SAMPLE)
    lake.fetch(DALLE_SAMPLES)
    lake.current(*FOLDERS)


@command(
    "sql",
    "query the catalog with SQL",
    about="""
Run one SELECT, DESCRIBE, SHOW or SUMMARIZE over the catalog's views and macros,
in DuckDB's SQL. `show tables` lists the views; docs/queries.md has examples.
""",
    example='sql "from resolution_table()"',
    arguments=[
        argument("statement", metavar="STATEMENT", help="the query"),
        argument(
            "--catalog",
            type=Path,
            metavar="FILE",
            help="catalog file (default: catalog/catalog.duckdb in the settings' lake)",
        ),
        argument(
            "--format",
            choices=["table", "csv", "json"],
            default="table",
            help="format of the result (default: table)",
        ),
        *(
            argument(
                f"--{name}",
                dest="format",
                action="store_const",
                const=name,
                help=f"the same as --format {name}",
            )
            for name in ("csv", "json")
        ),
    ],
)
def sql(args: argparse.Namespace) -> None:
    from laion_assets.cli.output import print_csv, print_json, print_table
    from laion_assets.lake import open_lake
    from laion_assets.layout import CATALOG
    from laion_assets.settings import load_settings
    from laion_assets.stats.catalog import query

    catalog, lake = args.catalog, None
    if catalog is None:
        lake = open_lake(load_settings(args.config).lake)
        catalog = lake.folder(CATALOG) / "catalog.duckdb"
    if not catalog.exists():
        raise CommandError(
            f"{catalog} does not exist: materialize the asset `catalog`, or name a catalog by "
            "--catalog"
        )
    table = query(catalog, args.statement, lake)
    {"table": print_table, "csv": print_csv, "json": print_json}[args.format](table)


@command(
    "why",
    "show what became of one URL, sample or image",
    about="""
Show, stage by stage, what became of a pair: where it was found, what kept or
refused it and by which rule, and where it is now.
""",
    example="why https://example.org/apple.jpg",
    arguments=[
        argument(
            "what", metavar="URL", help="image URL, or a SAMPLE_ID, or an image's SHA-256 or MD5"
        ),
        argument(
            "--lake",
            type=Path,
            metavar="FOLDER",
            help="folder of the lake (default: the settings' lake)",
        ),
    ],
)
def why(args: argparse.Namespace) -> None:
    from laion_assets.lake import LocalLake
    from laion_assets.settings import load_settings
    from laion_assets.stats import why as stories

    must_exist(args.lake)
    lake = LocalLake.at(args.lake) if args.lake else opened_lake(load_settings(args.config))
    try:
        answer = stories.why(lake, args.what)
    except stories.NotAskableError as error:
        args.parser.error(str(error))
    if not answer:
        raise CommandError(f"nothing is known of {args.what} in {lake}")
    for line in answer.lines():
        print(line)


@command(
    "calibrate",
    "propose a similarity threshold for a model",
    about="""
Compare the similarities of real pairs with those of shuffled ones, each image
with another's text of the same segment, and propose thresholds by the share of
shuffled pairs that they let through: of all scored pairs of the settings' lake,
or of one folder. The last lines are for the settings file.
""",
    example="calibrate emb/ --plot calibration.png",
    arguments=[
        argument(
            "pairs",
            nargs="?",
            type=Path,
            metavar="FOLDER",
            help="folder of embeddings or of scores: a segment's in a lake, or one that embed or "
            "filter --scores wrote (default: all scored pairs of the settings' lake)",
        ),
        argument("--plot", type=Path, metavar="FILE", help="draw both distributions as PNG"),
    ],
)
def calibrate(args: argparse.Namespace) -> None:
    from laion_assets.files import atomic_path
    from laion_assets.filtering.calibrate import report, similarities_of
    from laion_assets.filtering.figures import similarity_histogram
    from laion_assets.filtering.similarities import LET_THROUGH, PROPOSED, Similarities

    must_exist(args.pairs)
    if args.pairs:
        made_by, found = _model_of_pairs(args.pairs), similarities_of(args.pairs)
    else:
        from laion_assets.settings import load_settings

        made_by, folders = _scores_of(opened_lake(load_settings(args.config)))
        found = Similarities.read(folders)
    print(f"model {made_by.title if made_by else 'not recorded'}")
    for line in report(found, made_by):
        print(line)
    if args.plot:
        shares = sorted(LET_THROUGH, key=lambda share: share != PROPOSED)
        thresholds = [found.propose(share).threshold for share in shares]
        with atomic_path(args.plot) as beside:
            beside.write_bytes(similarity_histogram(found, thresholds))


def _model_of_pairs(folder: Path) -> ModelIdentity | None:
    """The model of a folder of embeddings or scores, if it is known."""
    from laion_assets.clip.identity import ModelIdentity
    from laion_assets.filtering.subset import embedded_by
    from laion_assets.lake import MANIFEST, Manifest

    if (folder / MANIFEST).exists():
        return ModelIdentity.recorded(Manifest.read(folder).metadata, folder)
    return embedded_by(folder)


def _scores_of(lake: Lake) -> tuple[ModelIdentity | None, list[Path]]:
    """The model of a lake's scored pairs, and their folders with the counts of similarities."""
    from laion_assets.clip.identity import ModelIdentity, the_one
    from laion_assets.layout import SCORED_PAIRS, SIMILARITY_FILES

    manifests = lake.manifests(SCORED_PAIRS)
    must_hold(list(manifests), SCORED_PAIRS, lake.local_root)
    recorded = (
        (key, ModelIdentity.recorded(manifest.metadata, f"{SCORED_PAIRS} of {key}"))
        for key, manifest in manifests.items()
    )
    made_by = the_one(recorded, SCORED_PAIRS)
    folders = lake.map(lambda key: lake.folder(SCORED_PAIRS, key, SIMILARITY_FILES), manifests)
    return made_by, folders


COMMANDS: Final = (search, serve, sql, why, calibrate)
