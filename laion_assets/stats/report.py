"""`report.html`, its figures, and `dataset_card.md`, from the catalog and the shards."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from laion_assets import schemas
from laion_assets.download.preview import Sample, sheet, thumbnails
from laion_assets.files import atomic_path, write_text
from laion_assets.filtering.figures import urls_of_shard
from laion_assets.funnel import REASONS
from laion_assets.generation.report import OVERVIEW
from laion_assets.lake import LocalLake
from laion_assets.schemas import SUBSET_MEANING
from laion_assets.segments import SegmentKey
from laion_assets.stats.catalog import ask, lake_of
from laion_assets.stats.figures import STAGE_NAMES, draw, percent
from laion_assets.stats.report_data import DECILES, Facts, NearPair, gather

logger = logging.getLogger(__name__)


def build_report(
    catalog: Path, out: Path, *, contact: str = "", samples: Path | None = None
) -> dict[str, Any]:
    """Write `report.html`, `dataset_card.md`, and `figures/` (each as PNG and as CSV) to ``out``.

    ``samples`` is the folder of `dalle_samples`, where there is one, and shown too.
    The page is one file that asks for nothing outside. The same catalog and shards give the same
    bytes. Returns the numbers worth a line of metadata. Raises ``FileNotFoundError`` without a
    catalog, :class:`QueryError` if partitions keep being replaced.
    """
    facts, root = ask(
        catalog, lambda connection: (gather(connection), lake_of(catalog, connection))
    )
    figures = draw(facts)
    for figure in figures:
        with atomic_path(out / "figures" / f"{figure.name}.png") as beside:
            beside.write_bytes(figure.light)
        write_text(out / "figures" / f"{figure.name}.csv", figure.csv)
    around = _around(facts.around, LocalLake.at(root), out / "figures")
    values = {
        "facts": facts,
        "figures": {figure.name: figure for figure in figures},
        "around": around,
        "deciles": DECILES,
        "reasons": REASONS,
        "stage_names": STAGE_NAMES,
        "overview": (samples / OVERVIEW).read_bytes() if samples else None,
    }
    write_text(out / "report.html", _templates().get_template("report.html").render(values))
    write_text(out / "dataset_card.md", dataset_card(facts, contact))
    logger.info(f"a report on {facts.samples:,} samples with {len(figures)} figures")
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
    """The datasheet, in Markdown. ``contact``: where removals may be asked for."""
    values = {
        "facts": facts,
        "contact": contact,
        "deciles": DECILES,
        "stage_names": STAGE_NAMES,
        "columns": [
            (field.name, field.type, SUBSET_MEANING[field.name]) for field in schemas.SUBSET
        ],
    }
    return _templates().get_template("dataset_card.md").render(values)


def _around(
    pairs: Sequence[NearPair], lake: LocalLake, out: Path
) -> dict[str, list[tuple[NearPair, bytes]]]:
    """Pairs just above and just below the threshold with a picture of each; both sheets written.

    Shards may have been made anew, or deleted, since they were embedded: such pairs are left out.
    """
    pairs = [pair for pair in pairs if _urls(_tar(pair, lake)).get(pair.key) == pair.url]
    shown = {}
    for name, wanted in (("just_above", True), ("just_below", False)):
        of_side = [pair for pair in pairs if pair.above == wanted]
        samples = [
            Sample(_tar(pair, lake), pair.key, f"{pair.similarity:.3f} {pair.text}")
            for pair in of_side
        ]
        if samples:
            shown[name] = list(zip(of_side, thumbnails(samples), strict=True))
            with atomic_path(out / f"{name}.jpg") as beside:
                beside.write_bytes(sheet(samples))
    if pairs:
        # Whose they are is not told here a second time: a SAMPLE_ID finds it, while it is there.
        rows = [f"{pair.sample_id},{pair.similarity},{pair.above}\n" for pair in pairs]
        write_text(out / "around_threshold.csv", "SAMPLE_ID,similarity,above\n" + "".join(rows))
    return shown


def _tar(pair: NearPair, lake: LocalLake) -> Path:
    key = SegmentKey(pair.crawl, pair.segment)
    return lake.folder("image_shards", key) / f"{pair.shard:05d}.tar"


def _urls(tar: Path) -> dict[str, str]:
    return urls_of_shard(tar) if tar.exists() else {}


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
    environment.filters["told"] = _told
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    environment.filters["millions"] = lambda n: f"{n / 1e6:,.3g} M"
    environment.filters["url"] = lambda text: quote(text, safe="")
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment


def _told(value: Any) -> str:
    """An option's value for a Markdown table; None: it differs."""
    if value is None:
        return "*differs*"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ") + "`"


def _size(n: float) -> str:
    """1536 -> 1.5 KB"""
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"
