"""`report.html`, its figures, and `dataset_card.md`, from the catalog."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from laion_assets.files import atomic_path, write_text
from laion_assets.funnel import REASONS
from laion_assets.generation.report import OVERVIEW
from laion_assets.progress import Log, silent
from laion_assets.stats.catalog import open_catalog
from laion_assets.stats.facts import DECILES, gather
from laion_assets.stats.figures import STAGE_NAMES, draw, percent


def build_report(
    catalog: Path, out: Path, *, samples: Path | None = None, log: Log = silent
) -> dict[str, Any]:
    """Write `report.html`, `dataset_card.md` and `figures/*.png` to ``out``.

    ``samples`` is the folder of `dalle_samples`, where there is one, and shown too.
    The page is one file that asks for nothing outside. The same catalog gives the same bytes.
    Returns the numbers worth a line of metadata. Raises ``FileNotFoundError`` without a catalog.
    """
    with open_catalog(catalog) as connection:
        facts = gather(connection)
    figures = draw(facts)
    for figure in figures:
        with atomic_path(out / "figures" / f"{figure.name}.png") as beside:
            beside.write_bytes(figure.light)
    values = {
        "facts": facts,
        "figures": {figure.name: figure for figure in figures},
        "deciles": DECILES,
        "reasons": REASONS,
        "stage_names": STAGE_NAMES,
        "overview": (samples / OVERVIEW).read_bytes() if samples else None,
    }
    templates = _templates()
    for name in ("report.html", "dataset_card.md"):
        write_text(out / name, templates.get_template(name).render(values))
    log(f"a report on {facts.samples:,} samples with {len(figures)} figures")
    return {
        "samples": facts.samples,
        "crawls": len(facts.crawls),
        "segments": facts.segments,
        "threshold": facts.threshold,
        "figures": [figure.name for figure in figures],
    }


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laion_assets.stats"),
        # Hosts, licences and languages come from strangers' pages.
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["percent"] = percent
    environment.filters["size"] = _size
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment


def _size(n: float) -> str:
    """1536 -> 1.5 KB"""
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
