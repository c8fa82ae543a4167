"""The paper's statistics table and figures, as HTML and PNG, and the dataset card."""

import dagster as dg

from laion_assets.assets.making import materialized, publishing
from laion_assets.automation import follow_upstream
from laion_assets.metadata import picture
from laion_assets.settings import Settings
from laion_assets.stats.report import build_report
from laion_assets.versions import code_version
from resources.lake import LakeResource

SAMPLES = "dalle_samples"


def build(_: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="stats",
        deps=["catalog", SAMPLES],
        code_version=code_version(2),
        automation_condition=follow_upstream(),
        kinds={"duckdb", "html"},
        description=__doc__,
    )
    def dataset_report(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> dg.MaterializeResult:
        store = lake.open()
        catalog = store.published("catalog") / "catalog.duckdb"
        # The samples are shown where there are any: nothing waits for them.
        shown = [SAMPLES] if store.has(SAMPLES) else []
        with publishing(context, store, upstream=["catalog"], shared=shown) as staging:
            drawn = store.published(SAMPLES) if shown else None
            staging.metadata = build_report(
                catalog, staging.path, samples=drawn, log=context.log.info
            )
        folder = store.folder("dataset_report")
        figures = {
            path.stem: picture(path.read_bytes(), path.stem)
            for path in sorted(folder.glob("**/*.png"))
        }
        return materialized(context, store, staging, extra=figures)

    return dataset_report
