"""The paper's statistics table and figures, as HTML, PNG and CSV, and the dataset card."""

from pathlib import Path
from typing import Any

import dagster as dg

from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import numbers_table
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.generation.shown_samples import PARTS, SHOWN, may_be_shown
from laion_assets.lake import Lake
from laion_assets.layout import (
    CATALOG,
    DALLE_SAMPLES,
    DATASET_REPORT,
    FILTERED_SUBSET,
    RECIPE_COMPARISON,
)
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.search.options import ServeOptions
from laion_assets.settings import Settings
from laion_assets.stats.report import build_report
from resources.lake import LakeResource

ASSET = Asset(DATASET_REPORT, group="stats", revision=7, aggregate=True, fresh=True)

SHOWS_SAMPLES = "shows_samples"
"""In the report's metadata: whether they are in it."""


def fit_to_show(store: Lake) -> bool:
    """Whether there are samples, and no picture among them has been taken out since."""
    return store.has(DALLE_SAMPLES) and may_be_shown(
        store.folder(DALLE_SAMPLES, names=SHOWN),
        read_lists(store.current(*FOLDERS)),
        lambda key: store.folder(FILTERED_SUBSET, key, PARTS),
    )


def links(report: Path, serve: ServeOptions) -> dict[str, dg.MetadataValue[Any]]:
    """Where a person opens the report: the file, and the search service if it serves it.

    A browser does not follow a link from the UI to a file.
    """
    shown: dict[str, dg.MetadataValue[Any]] = {"report": dg.MetadataValue.path(str(report))}
    if serve.report:
        shown["report_page"] = dg.MetadataValue.url(f"{serve.address}report")
    return shown


def build(settings: Settings) -> dg.AssetsDefinition:
    contact = settings.download.contact

    @dg.asset(
        **ASSET.arguments(settings, versioned=[contact]),
        deps=[CATALOG, DALLE_SAMPLES, RECIPE_COMPARISON],
        kinds={"duckdb", "html"},
        description=__doc__,
    )
    @retrying_transient
    def dataset_report(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> dg.MaterializeResult:
        store = lake.open()
        # Samples and a comparison are shown where there are any: nothing waits for them.
        shown_too = [DALLE_SAMPLES] if fit_to_show(store) else []
        shown_too += [RECIPE_COMPARISON] if store.has(RECIPE_COMPARISON) else []
        with publishing(context, store, upstream=[CATALOG, *shown_too]) as made:
            drawn, compared = (
                made.input(asset) if asset in shown_too else None
                for asset in (DALLE_SAMPLES, RECIPE_COMPARISON)
            )
            path = made.input(CATALOG) / "catalog.duckdb"
            summary = build_report(
                path,
                made.out,
                contact=contact,
                samples=drawn,
                comparison=compared,
                lake=store,
            )
            made.staging.metadata = summary | {SHOWS_SAMPLES: drawn is not None}
        shown: dict[str, Any] = {
            path.stem: made.view(path)
            for path in sorted(made.out.glob("figures/*"))
            if path.suffix in (".png", ".jpg")
        }
        card = (made.out / "dataset_card.md").read_text(encoding="utf-8")
        shown |= {
            "statistics": numbers_table(made.staging.metadata["statistics"]),
            **links(made.out / "report.html", settings.serve),
            "dataset_card": dg.MetadataValue.md(card),
        }
        return made.result(**shown)

    return dataset_report
