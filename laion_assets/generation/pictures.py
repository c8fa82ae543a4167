"""Pictures of a finished demo: a grid of samples per caption, an overview, and the loss curves."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from laion_assets.filtering.figures import as_png
from laion_assets.generation.evaluation import OVERVIEW_BEST, Drawn, Real, Run

_TILE: Final = 96
_GAP: Final = 6
_LINE: Final = 16
_FONT: Final = 12

TRAINED_ON: Final = "[trained on] "
"""Mark before a caption; after a long one it would be cut off."""

Tile = tuple[NDArray[np.uint8] | None, str]
"""A picture, uint8 (height, width, 3), or None for an empty place, and the text below it."""


def caption_grid(drawn: Drawn, real: Real | None, n: int) -> bytes:
    """PNG of the ``n`` samples that CLIP ranks highest, the ``n`` lowest, and real images."""
    rows = [
        (f"best {n} of {len(drawn.cosines)}", _tiles(drawn, drawn.best(n))),
        (f"worst {n}", _tiles(drawn, drawn.worst(n))),
    ]
    if real is not None:
        shown: list[Tile] = [(pixels, "") for pixels in real.pixels]
        rows.append((f"real, held out (mean {real.at_size:.2f})", shown))
    return _page(drawn.caption, rows, n)


def overview(
    drawn: Sequence[Drawn], real: Sequence[Real], trained_on: Collection[str] = ()
) -> bytes:
    """PNG with a row per caption: a real image, the best samples and the worst one.

    Captions that were trained on are marked.
    """
    by_caption = {one.caption: one for one in real}
    rows = []
    for one in drawn:
        known = by_caption.get(one.caption)
        first: Tile = (known.pixels[0], "real") if known else (None, "")
        last = _tiles(one, one.worst(1))[0]
        tiles = [first, *_tiles(one, one.best(OVERVIEW_BEST)), (last[0], f"worst {last[1]}")]
        rows.append((f"{TRAINED_ON * (one.caption in trained_on)}{one.caption}", tiles))
    title = f"A real image, the best {OVERVIEW_BEST} of {len(drawn[0].cosines)} by CLIP, the worst"
    return _page(title, rows, OVERVIEW_BEST + 2)


def guidance(compared: Mapping[float, Sequence[Drawn]], captions: int, n: int) -> bytes:
    """PNG of the first ``n`` samples, none chosen, of some captions by the scale of guidance."""
    rows = [
        (f"{drawn.caption}: guidance {scale:g}", _tiles(drawn, drawn.rows[:n]))
        for of_caption in list(zip(*compared.values(), strict=True))[:captions]
        for scale, drawn in zip(compared, of_caption, strict=True)
    ]
    return _page(f"The first {n} samples by the scale of guidance, none chosen", rows, n)


def _tiles(drawn: Drawn, rows: NDArray[np.int64]) -> list[Tile]:
    return [(drawn.picture(int(row)), f"{drawn.cosines[row]:.2f}") for row in rows]


def _page(title: str, rows: Sequence[tuple[str, Sequence[Tile]]], columns: int) -> bytes:
    height = _TILE + 2 * _LINE + _GAP
    page = Image.new(
        "RGB",
        (columns * (_TILE + _GAP) + _GAP, _LINE + 2 * _GAP + len(rows) * height),
        "white",
    )
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    pen.text((_GAP, _GAP), _short(title, columns), "black", font)
    for number, (heading, tiles) in enumerate(rows):
        top = _LINE + 2 * _GAP + number * height
        pen.text((_GAP, top), _short(heading, columns), "black", font)
        for column, (pixels, below) in enumerate(tiles[:columns]):
            left = _GAP + column * (_TILE + _GAP)
            if pixels is not None:
                # Enlarge without smoothing, to show every pixel as it is.
                tile = Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.NEAREST)
                page.paste(tile, (left, top + _LINE))
            pen.text((left, top + _LINE + _TILE), below, "#444444", font)
    out = io.BytesIO()
    page.save(out, "PNG", optimize=True)
    return out.getvalue()


def _short(text: str, columns: int) -> str:
    room = columns * (_TILE + _GAP) // 7
    return text if len(text) <= room else text[: room - 1] + "…"


def curves(runs: Sequence[Run]) -> bytes:
    """PNG of held-out and training losses by steps.

    If subsets were trained on, too, it also shows the final loss by training pairs.
    """
    from matplotlib.figure import Figure

    honest = [run for run in runs if run.name != "captions shuffled"]
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    steps, *more = figure.subplots(
        1, min(2, len(honest)), width_ratios=[3, 2][: len(honest)], squeeze=False
    )[0]
    for number, run in enumerate(runs):
        colour = f"C{number}"
        held = [(point.step, point.held_out) for point in run.curve if point.held_out is not None]
        steps.plot(*zip(*held, strict=True), color=colour, label=f"{run.name} ({run.pairs:,})")
        trained = [(point.step, point.loss) for point in run.curve]
        steps.plot(*zip(*trained, strict=True), color=colour, alpha=0.35, linewidth=0.8)
    steps.set(
        xlabel="optimiser steps",
        ylabel="nats a code",
        title="Held-out loss (thin: training loss, captions' included)",
    )
    steps.legend(fontsize=8)
    steps.grid(alpha=0.3)
    for sizes in more:
        lowest = [
            min(point.held_out for point in run.curve if point.held_out is not None)
            for run in honest
        ]
        pairs = [run.pairs for run in honest]
        sizes.plot(pairs, [run.held_out for run in honest], "o-", label="at the end")
        sizes.plot(pairs, lowest, "o--", alpha=0.6, label="lowest on the way")
        sizes.set(xscale="log", xlabel="training pairs", title="Held-out loss against pairs")
        sizes.legend(fontsize=8)
        sizes.grid(alpha=0.3, which="both")
    return as_png(figure)
