"""The demo's commands, and the summary that they print."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa

from laion_assets.demo.driver import Driver, needs
from laion_assets.demo.services import DemoError
from laion_assets.demo.world import (
    DRAWN,
    SAMPLE,
    Places,
    crawl_server,
    dagster_in,
    observe_lists,
    prepare,
    sole_demo,
    stop_leftovers,
)
from laion_assets.funnel import STAGES
from laion_assets.generation import require_extra
from laion_assets.lake import Lake, open_lake
from laion_assets.layout import (
    CATALOG,
    DALLE_SAMPLES,
    DATASET_REPORT,
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    KNN_INDEX,
    PAIR_PARQUET,
    SEARCH_INDEX,
)
from laion_assets.settings import CONFIG_VARIABLE, Settings, shipped_config

logger = logging.getLogger(__name__)

SEARCHES: Final = {
    SAMPLE: ("a red apple", "a bicycle", "a slice of pizza"),
    DRAWN: ("a red heart", "a purple balloon", "a yellow star"),
}


def run_demo(places: Places, settings: Settings, ui_port: int) -> None:
    """Bring a world up to date and print its summary; the drawn world's samples, too.

    Raises :class:`DemoError`.
    """
    from laion_assets.defs.build import build_defs

    defs = build_defs(settings)
    further = (DALLE_SAMPLES,) if places.world == DRAWN else ()
    if further:
        require_extra()
    with sole_demo(places):
        instance = prepare(places)
        stop_leftovers(places, instance)
        with crawl_server(places, settings) as group:
            observe_lists(settings, instance)
            lacks = needs(settings, instance, defs, further)
            if not lacks:
                logger.info("everything is up to date: nothing to materialize")
            for reason in lacks.reasons():
                logger.info(f"to build: {reason}")
            if lacks:
                with dagster_in(places, ui_port, group) as dagster:
                    driver = Driver(settings, instance, defs, dagster, further)
                    driver.bring_up_to_date(lacks)
        show_summary(settings, places)
        if further:
            show_samples(settings)


def run_ui(places: Places, settings: Settings, ui_port: int) -> None:
    """Serve the world's crawl and Dagster's UI on the demo's instance, until interrupted.

    Raises :class:`DemoError`.
    """
    with sole_demo(places):
        instance = prepare(places)
        stop_leftovers(places, instance)
        with (
            crawl_server(places, settings) as group,
            dagster_in(places, ui_port, group) as dagster,
        ):
            logger.info(f"open {dagster.url}/asset-groups; Ctrl-C ends it")
            dagster.watch()


def run_search_page(places: Places, settings: Settings, port: int | None) -> None:
    """Serve the search page over the demo's index, until interrupted.

    The crawl is served, too, for queries by the URL of one of its pictures. Raises
    :class:`DemoError` if there is no index.
    """
    from laion_assets.sample_crawl.server import SampleServer
    from laion_assets.search.serve import serve_index

    lake = open_lake(settings.lake)
    index = lake.folder(SEARCH_INDEX)
    if not index.exists():
        raise DemoError("there is no index yet: run `make demo` first")
    places.build_crawl()
    with contextlib.ExitStack() as stack:
        try:
            crawl_port = urlsplit(settings.crawl_source.data_url).port or 80
            stack.enter_context(SampleServer(places.crawl, port=crawl_port))
        except OSError:
            logger.info("the sample crawl is already being served, or its port is taken")
        options = settings.serve.listening_on(None, port)
        serve_index(index, options, settings.clip, settings.download)


def show_summary(settings: Settings, places: Places) -> None:
    """Print the funnel, the folders, a few searches, and what to do next."""
    lake, drawn = open_lake(settings.lake), places.world == DRAWN
    config = f"{CONFIG_VARIABLE}={shipped_config(DRAWN)} " if drawn else ""
    ui, page = (
        f".venv/bin/laion-assets {word} --world {places.world}" if drawn else f"make {short}"
        for word, short in (("ui", "ui"), ("search-page", "search"))
    )
    print()
    print_funnel(query_funnel(lake))
    print("\nWhere it is")
    for asset in (
        PAIR_PARQUET,
        IMAGE_SHARDS,
        EMBEDDINGS,
        FILTERED_SUBSET,
        KNN_INDEX,
        SEARCH_INDEX,
        CATALOG,
        DATASET_REPORT,
    ):
        print(f"  {asset:16} {lake.folder(asset)}")
    print_searches(settings, lake, SEARCHES[places.world])
    print(
        "\nNext\n"
        f"  {ui:56}Dagster's UI on this instance\n"
        f"  {page:56}the search page\n"
        f'  {config}.venv/bin/laion-assets sql "select stage, reason, n from funnel"\n'
        f"  .venv/bin/laion-assets search {lake.folder(SEARCH_INDEX)} "
        f'"{SEARCHES[places.world][-1]}"\n'
        f"  {lake.folder(DATASET_REPORT) / 'report.html'}"
    )


def show_samples(settings: Settings) -> None:
    """Print what the drawn world's samples measured, and where they are."""
    lake = open_lake(settings.lake)
    folder = lake.published(DALLE_SAMPLES)
    print("\nSamples of a model trained on the subset")
    for name, value in lake.manifest(DALLE_SAMPLES).metadata.items():
        if isinstance(value, float):
            print(f"  {name:58} {value:8.3f}")
    print(f"  {folder / 'report.html'}\n  {folder / 'overview.png'}")


def query_funnel(lake: Lake) -> pa.Table:
    """The funnel of all segments: columns stage, reason and n."""
    from laion_assets.stats.catalog import query

    catalog = lake.published(CATALOG) / "catalog.duckdb"
    return query(catalog, "select stage, reason, n from funnel")


def print_funnel(funnel: pa.Table) -> None:
    """Print the stages in their order: what went in, what was refused for which reason, what was
    kept."""
    rows = {(row["stage"], row["reason"]): row["n"] for row in funnel.to_pylist()}
    print(f"{'stage':14}{'':24}{'n':>10}")
    for stage in STAGES:
        reasons = sorted(reason for at, reason in rows if at == stage)
        ordered = ["in", *[r for r in reasons if r not in ("in", "kept")], "kept"]
        for reason in ordered:
            n = rows.get((stage, reason), 0)
            sign = "" if reason in ("in", "kept") else "− "
            print(f"{stage if reason == 'in' else '':14}{sign + reason:24}{n:>10,}")


def print_searches(settings: Settings, lake: Lake, texts: Sequence[str]) -> None:
    """Print the three best hits for each text."""
    from laion_assets.clip.model import load_clip
    from laion_assets.knn.query import search_text

    model = load_clip(settings.clip)
    for text in texts:
        print(f'\nSearch: "{text}"')
        for hit in search_text(lake.published(SEARCH_INDEX), text, model, 3):
            print(f"  {hit.score:.3f}  {hit.text}  {hit.url}")
