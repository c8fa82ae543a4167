"""`report.html` of a finished demo: one self-contained file."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import jinja2

from laion_assets.files import atomic_path, write_text
from laion_assets.generation import pictures
from laion_assets.generation.evaluation import Evaluation

REPORT: Final = "report.html"
OVERVIEW: Final = "overview.png"
CURVES: Final = "curves.png"
GUIDANCE: Final = "guidance.png"
_COMPARED: Final = 4
"""Captions whose samples are shown by the scale of guidance."""
_SIDE_BY_SIDE: Final = 8


def caption_picture(number: int) -> str:
    """Path of a caption's grid, relative to the demo's folder."""
    return f"captions/{number:04d}.png"


def write_report(out: Path, evaluation: Evaluation) -> None:
    """Write the pictures (``overview.png``, ``curves.png``, ``captions/NNNN.png``) and the page.

    If scales of guidance were compared, ``guidance.png`` shows it.
    """
    options = evaluation.options
    first, *_ = evaluation.drawn.values()
    by_caption = {one.caption: one for one in evaluation.real}
    grids = [pictures.caption_grid(one, by_caption.get(one.caption), options.best) for one in first]
    made = {
        OVERVIEW: pictures.overview(first, evaluation.real, evaluation.trained_on),
        CURVES: pictures.curves(evaluation.runs),
        **{caption_picture(number): grid for number, grid in enumerate(grids)},
    }
    if evaluation.guidance:
        made[GUIDANCE] = pictures.guidance(evaluation.guidance, _COMPARED, _SIDE_BY_SIDE)
    for name, data in made.items():
        with atomic_path(out / name) as beside:
            beside.write_bytes(data)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laion_assets.generation"),
        # Captions are untrusted: they come from strangers' pages.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    page = environment.get_template("report.html").render(
        evaluation=evaluation,
        options=options,
        curves=made[CURVES],
        guidance=made.get(GUIDANCE),
        grids=list(zip(first, grids, strict=True)),
    )
    write_text(out / REPORT, page)
