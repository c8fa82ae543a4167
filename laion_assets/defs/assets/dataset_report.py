"""The paper's statistics table and figures, as HTML, PNG and CSV, and the dataset card."""

from typing import Any

import dagster as dg

from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import numbers_table, picture
from laion_assets.defs.publishing import fetch_tables, materialized, publishing
from laion_assets.defs.retries import tried_again
from laion_assets.generation.shown_samples import PARTS, SHOWN, may_be_shown
from laion_assets.lake import Lake
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.settings import Settings
from laion_assets.stats.report import build_report
from resources.lake import LakeResource

SAMPLES = "dalle_samples"
SHOWS_SAMPLES = "shows_samples"
"""In the report's metadata: whether they are in it."""


def fit_to_show(store: Lake) -> bool:
    """Whether there are samples, and no picture among them has been taken out since."""
    return store.has(SAMPLES) and may_be_shown(
        store.folder(SAMPLES, names=SHOWN),
        read_lists(store.current(*FOLDERS)),
        lambda key: store.folder("filtered_subset", key, PARTS),
    )


def build(settings: Settings) -> dg.AssetsDefinition:
    contact = settings.download.contact

    @dg.asset(
        group_name="stats",
        deps=["catalog", SAMPLES],
        code_version=code_version(5, contact),
        kinds={"duckdb", "html"},
        description=__doc__,
        **scheduling(settings, "dataset_report"),
    )
    @tried_again
    def dataset_report(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> dg.MaterializeResult:
        store = lake.open()
        catalog = store.published("catalog") / "catalog.duckdb"
        # The samples are shown where there are any: nothing waits for them.
        there = [SAMPLES] if fit_to_show(store) else []
        with publishing(context, store, upstream=["catalog"], shared=there) as staging:
            fetch_tables(store, settings)
            drawn = store.published(SAMPLES) if there else None
            told = build_report(catalog, staging.path, contact=contact, samples=drawn)
            staging.metadata = told | {SHOWS_SAMPLES: drawn is not None}
        folder = store.folder("dataset_report")
        shown: dict[str, Any] = {
            path.stem: picture(path.read_bytes(), path.stem)
            for path in sorted(folder.glob("figures/*"))
            if path.suffix in (".png", ".jpg")
        }
        shown["statistics"] = numbers_table(staging.metadata["statistics"])
        shown["report"] = dg.MetadataValue.path(str(folder / "report.html"))
        card = (folder / "dataset_card.md").read_text(encoding="utf-8")
        shown["dataset_card"] = dg.MetadataValue.md(card)
        return materialized(context, store, staging, extra=shown)

    return dataset_report
