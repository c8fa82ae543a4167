"""The demo's two commands, and what they tell."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa

from laion_assets.demo.driver import Driver, needs
from laion_assets.demo.world import (
    DemoError,
    Places,
    crawl_server,
    dagster_dev,
    observe_lists,
    prepare,
    sole_demo,
    stop_leftovers,
)
from laion_assets.funnel import STAGES
from laion_assets.lake import Lake
from laion_assets.settings import Settings, load_settings

SEARCHES: Final = ("a red apple", "a bicycle", "a slice of pizza")


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def run_demo(root: Path, ui_port: int) -> None:
    """Bring the sample world up to date and show it. Raises ``DemoError``."""
    from laion_assets.definitions import defs

    settings, places = load_settings(), Places(root)
    with sole_demo(places, _say):
        instance = prepare(places, _say)
        stop_leftovers(places, instance, _say)
        with crawl_server(places, settings, _say) as group:
            observe_lists(settings, instance)
            lacks = needs(settings, instance, defs)
            if not lacks:
                _say("everything is there and current: nothing to materialize")
            for reason in lacks.reasons():
                _say(f"to make: {reason}")
            if lacks:
                with dagster_dev(places, ui_port, group, _say) as dagster:
                    Driver(settings, instance, defs, dagster, _say).bring_up_to_date(lacks)
        show_summary(settings)


def run_ui(root: Path, ui_port: int) -> None:
    """Serve the sample crawl and Dagster's UI on the demo's instance until interrupted."""
    settings, places = load_settings(), Places(root)
    with sole_demo(places, _say):
        instance = prepare(places, _say)
        stop_leftovers(places, instance, _say)
        with (
            crawl_server(places, settings, _say) as group,
            dagster_dev(places, ui_port, group, _say) as dagster,
        ):
            _say(f"open {dagster.url}/asset-groups; Ctrl-C ends it")
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    dagster.check()
                    time.sleep(1)


def run_search_page(root: Path, port: int | None) -> None:
    """Serve the search page over the demo's index, and the sample crawl's pictures for queries by
    their URL, until interrupted."""
    from laion_assets.sample_crawl.build import build_sample_crawl
    from laion_assets.sample_crawl.server import SampleServer
    from laion_assets.search.serve import serve_index

    settings, places = load_settings(), Places(root)
    index = Lake(settings.lake).folder("search_index")
    if not index.exists():
        raise DemoError("there is no index yet: run make demo first")
    build_sample_crawl(places.crawl)
    with contextlib.ExitStack() as stack:
        try:
            crawl_port = urlsplit(settings.crawl_source.data_url).port or 80
            stack.enter_context(SampleServer(places.crawl, port=crawl_port))
        except OSError:
            _say("the sample crawl is served already, or its port is taken")
        options = settings.serve.listening_on(None, port)
        serve_index(index, options, settings.clip, settings.download, log=_say)


def show_summary(settings: Settings) -> None:
    lake = Lake(settings.lake)
    print()
    print_funnel(query_funnel(lake))
    print("\nWhere it is")
    for asset in (
        "pair_parquet",
        "image_shards",
        "embeddings",
        "filtered_subset",
        "knn_index",
        "search_index",
        "catalog",
        "dataset_report",
    ):
        print(f"  {asset:16} {lake.folder(asset)}")
    print_searches(settings, lake)
    print(
        "\nNext\n"
        "  make ui                                                 Dagster's UI on this instance\n"
        "  make search                                             the search page\n"
        '  .venv/bin/laion-assets sql "select stage, reason, n from funnel order by 1, 2"\n'
        f'  .venv/bin/laion-assets search {lake.folder("search_index")} "a slice of pizza"\n'
        f"  {lake.folder('dataset_report') / 'report.html'}"
    )


def query_funnel(lake: Lake) -> pa.Table:
    from laion_assets.stats.catalog import query

    catalog = lake.published("catalog") / "catalog.duckdb"
    return query(catalog, "select stage, reason, n from funnel")


def print_funnel(funnel: pa.Table) -> None:
    """Stages in the order of the way; under each what went in, why not all stayed, what did."""
    rows = {(row["stage"], row["reason"]): row["n"] for row in funnel.to_pylist()}
    print(f"{'stage':14}{'':24}{'n':>10}")
    for stage in STAGES:
        reasons = sorted(reason for at, reason in rows if at == stage)
        ordered = ["in", *[r for r in reasons if r not in ("in", "kept")], "kept"]
        for reason in ordered:
            n = rows.get((stage, reason), 0)
            sign = "" if reason in ("in", "kept") else "− "
            print(f"{stage if reason == 'in' else '':14}{sign + reason:24}{n:>10,}")


def print_searches(settings: Settings, lake: Lake) -> None:
    from laion_assets.clip.model import load_clip
    from laion_assets.knn.query import search_text

    model = load_clip(settings.clip)
    for text in SEARCHES:
        print(f'\nSearch: "{text}"')
        for hit in search_text(lake.published("search_index"), text, model, 3):
            print(f"  {hit.score:.3f}  {hit.text}  {hit.url}")
