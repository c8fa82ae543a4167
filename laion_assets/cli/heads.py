"""Commands of the heads: what a deployment has, and conversion of files that others published."""

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
    must_exist,
    output,
    say,
)

if TYPE_CHECKING:
    from laion_assets.clip.identity import ModelIdentity


@command(
    "heads convert",
    "make a head of a predictor that LAION published",
    about="""
Make a head, a JSON file and its weights, of a PyTorch file of one of these
layouts: LAION's aesthetic predictors (sa_0_4_…_linear.pth and
sac+logos+ava1-l14-linearMSE.pth) and the CLIP-based NSFW detector
(clip_…_binary_nsfw_head.pth, h14_nsfw.pth). You bring the file; nothing but
tensors is read of it. A head belongs to one version of one CLIP: the settings'
model, which is loaded to learn its version, or that of --embeddings.
""",
    example="heads convert aesthetic.pth -o heads/aesthetic.json",
    arguments=[
        argument("file", type=Path, metavar="FILE", help="file of PyTorch tensors"),
        argument(
            "--embeddings",
            type=Path,
            metavar="FOLDER",
            help="folder of embeddings made with the head's CLIP: no model is loaded then",
        ),
        argument("--name", help="name of the head (default: that of the output file)"),
        argument(
            "--licence",
            default="as its source says",
            metavar="TEXT",
            help="licence of the weights, for whoever gets the head",
        ),
        output("HEAD.json", "the head; its weights are written beside it"),
    ],
)
def convert(args: argparse.Namespace) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.heads.convert import RANGES, Description, folded, read_layout, write_head
    from laion_assets.settings import load_settings

    must_exist(args.file, args.embeddings)
    if args.output.suffix != ".json":
        args.parser.error(f"{args.output} is not the name of a JSON file")
    options = None if args.embeddings else load_settings(args.config).clip
    layout = read_layout(args.file)
    layers = folded(layout.layers)
    model = _model_of(args.embeddings) if options is None else load_clip(options).identity
    low, high, keep = RANGES[layout.name]
    description = Description(
        name=args.name or args.output.stem,
        about=f"Converted from {args.file.name}, layout {layout.name}",
        source=args.file.name,
        licence=args.licence,
        low=low,
        high=high,
        keep=keep,
    )
    head = write_head(args.output, description, layers, model)
    say(
        f"layout {layout.name}: {len(layout.layers)} layers, {len(layers)} after folding, of width "
        f"{head.dim}, for {head.identity.title}"
    )
    print(args.output)


def _model_of(embeddings: Path) -> ModelIdentity:
    """The CLIP that made a folder of embeddings."""
    from laion_assets.filtering.subset import embedded_by

    found = embedded_by(embeddings)
    if found is None:
        raise CommandError(f"{embeddings} does not say which model made it")
    return found


@command(
    "heads list",
    "show the settings' heads and the shipped ones",
    about="""
Show the heads of the settings and those that are shipped: the column of their
scores, their CLIP, range, source and licence.
""",
    example="heads list",
)
def list_(args: argparse.Namespace) -> None:
    from laion_assets.heads.head import Head, load_head, shipped_heads
    from laion_assets.schemas import SCORE_PREFIX
    from laion_assets.settings import load_settings

    def show(place: str, head: Head) -> None:
        print(f"{place}: {head.title}, {head.about}")
        print(
            f"  for {head.identity.title}; scores {head.low:g} to {head.high:g}, {head.keep} kept"
        )
        print(f"  source {head.source}; licence {head.licence}; digest {head.digest}")

    for name, options in sorted(load_settings(args.config).heads.items()):
        show(f"{SCORE_PREFIX}{name}", load_head(options.file))
    for name in shipped_heads():
        show(f"shipped {name}", load_head(name))


COMMANDS: Final[Sequence[Command]] = (convert, list_)
