"""Each stage as a command on plain files, without a lake and without Dagster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from laion_assets.cli.common import (
    Command,
    CommandError,
    argument,
    command,
    lists_in,
    must_exist,
    must_hold,
    output,
    positive,
    say,
    show_counts,
)
from laion_assets.cli.url_lists import (
    LANGUAGES,
    LIST_ARGUMENTS,
    LIST_HELP,
    is_of_pairs,
    must_be_lists,
    pairs_beside,
    rules_of,
    write_pairs,
)

if TYPE_CHECKING:
    from laion_assets.download.options import DownloadOptions
    from laion_assets.removals.entries import Entries

_HOSTS_SHOWN: Final = 5


@command(
    "pairs",
    "extract image-text pairs from WAT files or a list of URLs",
    about="""
Read the image links with their alt texts from Common Crawl WAT files, or a list
of image URLs with captions, write what the rules keep to one parquet file, and
print how many each rule refused. The rules are [pairs] in the settings.
""",
    example="pairs FILE.warc.wat.gz -o pairs.parquet",
    arguments=[
        argument("wat", type=Path, nargs="*", metavar="WAT", help="WAT file (.warc.wat.gz)"),
        argument(
            "--from-list", nargs="+", metavar="LIST", help=f"take a list instead: {LIST_HELP}"
        ),
        *LIST_ARGUMENTS,
        LANGUAGES,
        output("FILE", "parquet file to write"),
    ],
)
def pairs(args: argparse.Namespace) -> None:
    from laion_assets.pairs.extract import extract_files
    from laion_assets.settings import load_settings

    if bool(args.wat) == bool(args.from_list):
        args.parser.error("give either WAT files or --from-list")
    if args.from_list:
        must_be_lists(args, args.from_list)
        write_pairs(args, args.from_list, args.output)
    else:
        must_exist(*args.wat)
        rules = rules_of(args, load_settings(args.config))
        for counts in extract_files(args.wat, args.output, rules):
            show_counts(counts)
    print(args.output)


@command(
    "download",
    "download the images of pairs or of a list of URLs",
    about="""
Download the images of pairs, resize them and write shards as img2dataset does:
a tar, a parquet and statistics each. A list of image URLs is made into pairs
first, as `pairs --from-list` does. An interrupted download continues in the
same folder. The rules are [pairs] and [download] in the settings.
""",
    example="download pairs.parquet -o shards/",
    arguments=[
        argument(
            "pairs",
            nargs="+",
            metavar="PAIRS",
            help=f"parquet file of pairs, folder of part-*.parquet, or list: {LIST_HELP}",
        ),
        *LIST_ARGUMENTS,
        LANGUAGES,
        argument(
            "--removals",
            type=Path,
            metavar="FOLDER",
            help="folder of removal lists; listed pairs and images are left out",
        ),
        argument(
            "--blocklists", type=Path, metavar="FOLDER", help="folder of blocklists, used likewise"
        ),
        argument(
            "--refetch",
            choices=("transient", "all"),
            help="refetch URLs of finished shards: transient takes those that failed for a "
            "transient reason, all takes every URL",
        ),
        output("FOLDER", "folder of the shards"),
    ],
)
def download(args: argparse.Namespace) -> None:
    from laion_assets.settings import load_settings

    must_be_lists(args, args.pairs)
    lists = lists_in(args.removals), lists_in(args.blocklists)
    options = load_settings(args.config).download
    if args.refetch:
        options = options.model_copy(update={"refetch": args.refetch})
    download_into(args, args.pairs, args.output, options, lists)
    print(args.output)


def download_into(
    args: argparse.Namespace,
    places: Sequence[str],
    out: Path,
    options: DownloadOptions,
    lists: tuple[Entries, Entries],
) -> None:
    """Download pairs or a URL list, and show the counts. ``lists``: removals and blocklists."""
    from laion_assets.download.segment import download_segment

    removals, blocklists = lists

    one = places[0] if len(places) == 1 else None
    ready = one is not None and is_of_pairs(one)
    source = Path(one) if one and ready else pairs_beside(args, places, out)
    out.mkdir(parents=True, exist_ok=True)
    downloaded = download_segment(
        source,
        out,
        options,
        removals=removals,
        blocklists=blocklists,
        again=bool(args.refetch),
    )
    show_counts(downloaded.counts)
    if downloaded.changed:
        say(f"{downloaded.changed:,} images differ from their recorded SHA-256: see _ledger")
    for host, reasons in list(downloaded.hosts.items())[:_HOSTS_SHOWN]:
        numbers = ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items()))
        say(f"failing host {host}: {numbers}")


@command(
    "embed",
    "embed the images and texts of shards with CLIP",
    about="""
Write the CLIP embeddings of all images and texts in shards, and beside them
their rows. An interrupted run continues in the same folder, and a later one may
add shards. The model is [clip] in the settings.
""",
    example="embed shards/ -o emb/",
    arguments=[
        argument(
            "shard", type=Path, nargs="+", metavar="SHARD", help="tar file, or folder of shards"
        ),
        output("FOLDER", "folder of the embeddings"),
    ],
)
def embed(args: argparse.Namespace) -> None:
    from laion_assets.clip.embed import embed_files
    from laion_assets.clip.model import load_clip
    from laion_assets.clip.shards import find_shards
    from laion_assets.settings import load_settings

    must_exist(*args.shard)
    shards: list[Path] = []
    for path in args.shard:
        found = find_shards(path) if path.is_dir() else [path]
        must_hold(found, "shards", path)
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


@command(
    "filter",
    "select the samples that a recipe keeps",
    about="""
Score embedded samples by similarity and safety, and write those that a recipe
keeps as a subset. The recipe is [subset] in the settings, unless one is named.
Images without captions have no similarity: the recipe's other rules choose.
""",
    example="filter emb/ -o subset/",
    arguments=[
        argument("embeddings", type=Path, metavar="EMBEDDINGS", help="folder that embed wrote"),
        argument(
            "--recipe",
            metavar="NAME",
            help="a shipped recipe (laion400m, laion5b-en) or one of the settings",
        ),
        argument(
            "--threshold",
            type=float,
            metavar="COSINE",
            help="lowest similarity of image and text (default: the recipe's)",
        ),
        argument(
            "--scores",
            type=Path,
            metavar="FOLDER",
            help="write the scores of all samples to this folder, too",
        ),
        output("FOLDER", "folder of the subset"),
    ],
)
def filter_(args: argparse.Namespace) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.clip.vectors import has_texts
    from laion_assets.filtering.subset import filter_embeddings
    from laion_assets.heads.score import scorers
    from laion_assets.layout import EMBEDDINGS, PARTITIONS
    from laion_assets.settings import load_settings

    must_exist(args.embeddings)
    found = PARTITIONS[EMBEDDINGS].rows.paths(args.embeddings)
    must_hold(found, "embeddings", args.embeddings)
    settings = load_settings(args.config)
    recipe = settings.recipe(args.recipe) if args.recipe else settings.subset
    if args.threshold is not None:
        recipe = recipe.at(args.threshold)
    if has_texts(args.embeddings):
        recipe.threshold_of(settings.clip.key)  # before the model is loaded
    elif args.threshold is not None:
        raise CommandError(
            f"the images of {args.embeddings} have no captions, so there is no similarity to "
            "filter by: leave --threshold out"
        )
    else:
        say("no captions: nothing is filtered by similarity, only by the recipe's other rules")
    args.output.mkdir(parents=True, exist_ok=True)
    show_counts(
        filter_embeddings(
            args.embeddings,
            args.output,
            load_clip(settings.clip),
            settings.safety,
            recipe,
            args.scores,
            scorers(settings.heads),
        )
    )
    print(args.output)


@command(
    "index",
    "build the nearest-neighbour indices of a subset",
    about="""
Build a nearest-neighbour index over the images of a subset and one over its
texts. Their kind is [index] in the settings; a large subset needs a codec,
which is trained on it unless one is given.
""",
    example="index subset/ -o idx/",
    arguments=[
        argument("subset", type=Path, metavar="SUBSET", help="folder that filter wrote"),
        argument(
            "--codec",
            type=Path,
            metavar="FOLDER",
            help="use this trained codec instead of training one",
        ),
        output("FOLDER", "folder of the indices"),
    ],
)
def index(args: argparse.Namespace) -> None:
    from laion_assets.knn.build import index_subset
    from laion_assets.knn.subset import model_of, subset_parts
    from laion_assets.settings import load_settings

    must_exist(args.subset, args.codec)
    must_hold(subset_parts(args.subset), "samples", args.subset)
    settings = load_settings(args.config)
    args.output.mkdir(parents=True, exist_ok=True)
    summary = index_subset(
        args.subset,
        args.output,
        settings.index,
        model=model_of(args.subset),
        codec=args.codec,
    )
    for name, value in summary.headline().items():
        print(f"{name:14} {value}")


@command(
    "build",
    "make a searchable dataset of a list of URLs",
    about="""
Make pairs of a list of image URLs, download, embed, filter and index them: the
other commands one after another, each into a folder of its own below FOLDER. An
interrupted call continues. Search the result by
`laion-assets search FOLDER/index "a red apple" --subset FOLDER/subset`.
""",
    example="build list.csv -o mine/",
    arguments=[
        argument("list", nargs="+", metavar="LIST", help=LIST_HELP),
        *LIST_ARGUMENTS,
        LANGUAGES,
        output("FOLDER", "folder of the dataset"),
    ],
)
def build(args: argparse.Namespace) -> None:
    from laion_assets.settings import load_settings

    must_be_lists(args, args.list)
    shards, emb, subset, idx = (args.output / name for name in ("shards", "emb", "subset", "index"))
    given = argparse.Namespace(**vars(args), refetch=None)
    options = load_settings(args.config).download
    download_into(given, args.list, shards, options, (lists_in(None), lists_in(None)))

    def run(command: Command, **given: object) -> None:
        command.run(argparse.Namespace(config=args.config, **given))

    run(embed, shard=[shards], output=emb)
    none = dict.fromkeys(("recipe", "threshold", "scores"))
    run(filter_, embeddings=emb, output=subset, **none)
    run(index, subset=subset, codec=None, output=idx)


@command(
    "dalle",
    "train a small DALL-E on a segment's subset",
    about="""
Train a small DALL-E on the pairs of one segment's subset, draw samples for
held-out captions, rank them with CLIP, and write models, pictures and a report.
An interrupted run continues in the same folder. The sizes are [generation] in
the settings. Needs the extra `generation`.
""",
    example="dalle \\\n"
    "    .demo/lake/filtered_subset/crawl=CC-MAIN-2000-05/segment=00 \\\n"
    "    .demo/lake/image_shards/crawl=CC-MAIN-2000-05/segment=00 -o dalle/",
    arguments=[
        argument(
            "subset", type=Path, metavar="SUBSET", help="the segment's folder in filtered_subset"
        ),
        argument(
            "shards", type=Path, metavar="SHARDS", help="the segment's folder in image_shards"
        ),
        output("FOLDER", "folder of the models and samples"),
    ],
)
def dalle(args: argparse.Namespace) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.generation import require_extra
    from laion_assets.settings import load_settings

    must_exist(args.subset, args.shards)
    settings = load_settings(args.config)
    require_extra()
    from laion_assets.generation.dalle import make_samples
    from laion_assets.generation.pairs import find_shards

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


@command(
    "draw",
    "draw a caption with a trained small DALL-E",
    about="""
Draw samples of a caption with a model that dalle has trained, and write the
best by CLIP as one PNG. Needs the extra `generation`.
""",
    example="draw .demo/drawn/lake/dalle_samples \\\n"
    '    "A red heart on a blue background" -o heart.png',
    arguments=[
        argument("model", type=Path, metavar="FOLDER", help="folder that dalle wrote"),
        argument("caption", metavar="CAPTION", help="text to draw"),
        argument(
            "--seed",
            type=int,
            default=0,
            metavar="N",
            help="another seed draws other pictures (default: 0)",
        ),
        argument(
            "--samples",
            type=positive,
            default=32,
            metavar="N",
            help="pictures to draw, of which the best are shown (default: 32)",
        ),
        output("FILE", "PNG file to write"),
    ],
)
def draw(args: argparse.Namespace) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.files import atomic_path
    from laion_assets.generation import require_extra
    from laion_assets.settings import load_settings

    must_exist(args.model / "options.json")
    settings = load_settings(args.config)
    require_extra()
    from laion_assets.generation.drawing import draw_caption
    from laion_assets.generation.pictures import caption_grid

    clip = load_clip(settings.clip)
    device = settings.generation.device
    drawn = draw_caption(args.model, args.caption, clip, args.seed, device, args.samples)
    with atomic_path(args.output) as beside:
        beside.write_bytes(caption_grid(drawn, None, min(8, len(drawn.cosines))))
    print(args.output)


COMMANDS: Final = (pairs, download, embed, filter_, index, build, dalle, draw)
