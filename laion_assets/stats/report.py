"""`report.html`, its figures, and `dataset_card.md`, from the catalog and a few shards."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from laion_assets import schemas
from laion_assets.comparison.result import Comparison
from laion_assets.download.preview import Sample, sheet_and_tiles
from laion_assets.download.shard_files import tar_path
from laion_assets.files import atomic_path, write_text
from laion_assets.filtering.figures import urls_of_shard
from laion_assets.funnel import REASONS
from laion_assets.generation.report import OVERVIEW
from laion_assets.lake import Lake, LocalLake
from laion_assets.layout import IMAGE_SHARDS, place_of
from laion_assets.schemas import meaning
from laion_assets.stats.catalog import lake_of, open_catalog
from laion_assets.stats.clusters import Member, clusters_shown, copies
from laion_assets.stats.compared import figure_of
from laion_assets.stats.figures import STAGE_NAMES, draw
from laion_assets.stats.near import NearPair, pairs_around
from laion_assets.stats.plotting import percent
from laion_assets.stats.report_data import DECILES, Facts, gather

logger = logging.getLogger(__name__)


def build_report(
    catalog: Path,
    out: Path,
    *,
    contact: str = "",
    samples: Path | None = None,
    comparison: Path | None = None,
    lake: Lake | None = None,
) -> dict[str, Any]:
    """Write `report.html`, `dataset_card.md`, and `figures/` (each as PNG and as CSV) to ``out``.

    ``samples`` and ``comparison`` are the folders of `dalle_samples` and `recipe_comparison`, if
    the page shall show them; ``lake`` is as :func:`~laion_assets.stats.catalog.open_catalog` has
    it. The page is one self-contained file.
    The same catalog and shards give the same bytes. Returns the most important numbers, for
    metadata. Raises ``FileNotFoundError`` without a catalog, ``TransientError`` if a partition that
    is read was replaced since the catalog was built.
    """
    with open_catalog(catalog, lake) as connection:
        facts = gather(connection)
        near = [] if facts.threshold is None else pairs_around(connection, facts.threshold)
        counted, members = copies(connection), clusters_shown(connection)
        lake = lake or LocalLake.at(lake_of(catalog, connection))
    figures = draw(facts)
    compared = Comparison.read(comparison) if comparison else None
    if compared:
        figures.append(figure_of(compared))
    for figure in figures:
        with atomic_path(out / "figures" / f"{figure.name}.png") as beside:
            beside.write_bytes(figure.light)
        write_text(out / "figures" / f"{figure.name}.csv", figure.csv)
    around = _around(near, lake, out / "figures")
    values = {
        "facts": facts,
        "figures": {figure.name: figure for figure in figures},
        "around": around,
        "copies": counted,
        "clusters": _clusters(members, lake, out / "figures"),
        "deciles": DECILES,
        "reasons": REASONS,
        "stage_names": STAGE_NAMES,
        "comparison": compared,
        "overview": (samples / OVERVIEW).read_bytes() if samples else None,
    }
    write_text(out / "report.html", _templates().get_template("report.html").render(values))
    write_text(out / "dataset_card.md", dataset_card(facts, contact))
    logger.info(f"wrote a report on {facts.samples:,} samples with {len(figures)} figures")
    return {
        "samples": facts.samples,
        "crawls": len(facts.crawls),
        "segments": facts.segments,
        "threshold": facts.threshold,
        "figures": [figure.name for figure in figures],
        "statistics": [
            {
                "original image": row.what,
                "samples": row.n,
                "share": percent(row.share),
                "LAION-400M": row.paper,
                "its share": percent(row.paper_share),
            }
            for row in facts.statistics
        ],
    }


def dataset_card(facts: Facts, contact: str = "") -> str:
    """Render the datasheet as Markdown. ``contact``: where to ask for removals."""
    values = {
        "facts": facts,
        "contact": contact,
        "deciles": DECILES,
        "stage_names": STAGE_NAMES,
        "columns": [
            (field.name, field.type, meaning(field.name))
            for field in schemas.with_scores(schemas.SUBSET, facts.kept_scores)
        ],
    }
    return _templates().get_template("dataset_card.md").render(values)


def _around(
    pairs: Sequence[NearPair], lake: Lake, out: Path
) -> dict[str, list[tuple[NearPair, bytes]]]:
    """Collect the pairs just above and just below the threshold, each with its picture.

    Also writes both contact sheets and a CSV to ``out``. Pairs whose shard was rebuilt or deleted
    since they were embedded are left out.
    """
    pairs = [pair for pair in pairs if _urls(_tar(pair, lake)).get(pair.image) == pair.url]
    shown: dict[str, list[tuple[NearPair, bytes]]] = {"just_above": [], "just_below": []}
    for name, wanted in (("just_above", True), ("just_below", False)):
        of_side = [pair for pair in pairs if pair.above == wanted]
        samples = [
            Sample(_tar(pair, lake), pair.image, f"{pair.similarity:.3f} {pair.text}")
            for pair in of_side
        ]
        if samples:
            whole, tiles = sheet_and_tiles(samples)
            shown[name] = list(zip(of_side, tiles, strict=True))
            with atomic_path(out / f"{name}.jpg") as beside:
                beside.write_bytes(whole)
    if pairs:
        # No URL or text: a SAMPLE_ID finds the sample as long as it is in the lake, and no longer.
        rows = [f"{pair.sample_id},{pair.similarity},{pair.above}\n" for pair in pairs]
        write_text(out / "around_threshold.csv", "SAMPLE_ID,similarity,above\n" + "".join(rows))
    return shown


def _clusters(members: Sequence[Member], lake: Lake, out: Path) -> list[list[tuple[Member, bytes]]]:
    """Collect the pictures of some clusters, and write their contact sheet to ``out``."""
    members = [one for one in members if _urls(_tar(one, lake)).get(one.image) == one.url]
    if not members:
        return []
    samples = [
        Sample(_tar(one, lake), one.image, f"cluster {one.cluster}: {_likeness(one)}")
        for one in members
    ]
    whole, tiles = sheet_and_tiles(samples)
    with atomic_path(out / "clusters.jpg") as beside:
        beside.write_bytes(whole)
    shown: dict[int, list[tuple[Member, bytes]]] = {}
    for one, tile in zip(members, tiles, strict=True):
        shown.setdefault(one.cluster, []).append((one, tile))
    return [of for of in shown.values() if len(of) > 1]


def _likeness(one: Member) -> str:
    return "first" if one.first else f"{one.likeness:.3f}"


def _tar(pair: NearPair | Member, lake: Lake) -> Path:
    # A shard that is in an object store alone is not fetched for a picture or two.
    return tar_path(lake.local_root / place_of(IMAGE_SHARDS, pair.key), pair.shard)


def _urls(tar: Path) -> dict[str, str]:
    return urls_of_shard(tar) if tar.exists() else {}


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("laion_assets.stats"),
        # Hosts, licences and languages are untrusted: they come from strangers' pages.
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = "{:,}".format
    environment.filters["percent"] = percent
    environment.filters["size"] = _size
    environment.filters["option"] = _option
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    environment.filters["millions"] = lambda n: f"{n / 1e6:,.3g} M"
    environment.filters["url"] = lambda text: quote(text, safe="")
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment


def _option(value: Any) -> str:
    """Write an option's value for a Markdown table; None means that it differs."""
    if value is None:
        return "*differs*"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ") + "`"


def _size(n: float) -> str:
    """Write a number of bytes with its unit: 1536 as 1.5 KB."""
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
