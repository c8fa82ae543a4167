"""The demo's commands, and the summary that they print."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import sys
import time
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import dagster as dg
import pyarrow as pa

import laion_assets
from laion_assets.demo.driver import Driver, needs
from laion_assets.demo.services import Dagster, DemoError
from laion_assets.demo.world import (
    DRAWN,
    SAMPLE,
    Places,
    crawl_server,
    dagster_in,
    observe_lists,
    prepare,
    running_dagster,
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
    SEARCH_INDEX,
)
from laion_assets.settings import CONFIG_VARIABLE, Settings, named_config, shipped_config

logger = logging.getLogger(__name__)

_REASONS: Final = 3
"""Reasons of a stage that the summary names."""
SEARCHES: Final = {
    SAMPLE: ("a red apple", "a bicycle", "a slice of pizza"),
    DRAWN: ("a red heart", "a purple balloon", "a yellow star"),
}


def run_demo(places: Places, settings: Settings, ui_port: int, *, opens: bool = False) -> None:
    """Bring a world up to date and print its summary; the drawn world's samples, too.

    ``opens``: show the report in a browser.

    Raises :class:`DemoError`.
    """
    from laion_assets.defs.build import build_defs

    defs = build_defs(settings)
    further = (DALLE_SAMPLES,) if places.world == DRAWN else ()
    if further:
        require_extra()
    if url := running_dagster(places, idle=True):
        logger.info(f"Dagster is running already: {url}")
        running = Dagster(url, time.time(), [], places.log)
        _build(settings, prepare(places), defs, further, lambda: nullcontext(running))
    else:
        with sole_demo(places):
            instance = prepare(places)
            stop_leftovers(places, instance)
            with crawl_server(places, settings) as group:
                start = partial(dagster_in, places, ui_port, group)
                _build(settings, instance, defs, further, start)
    show_summary(settings, places)
    if further:
        show_samples(settings)
    if opens:
        webbrowser.open(report(open_lake(settings.lake)).as_uri())


def _build(
    settings: Settings,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    further: Sequence[str],
    dagster: Callable[[], AbstractContextManager[Dagster]],
) -> None:
    """Have Dagster, once it is needed, make what is missing or stale."""
    observe_lists(settings, instance)
    lacks = needs(settings, instance, definitions, further)
    if not lacks:
        logger.info("everything is up to date: nothing to materialize")
    for reason in lacks.reasons():
        logger.info(f"to build: {reason}")
    if lacks:
        with dagster() as running:
            Driver(settings, instance, definitions, running, further).bring_up_to_date(lacks)


def run_ui(places: Places, settings: Settings, ui_port: int) -> None:
    """Serve the world's crawl and Dagster's UI on the demo's instance, until interrupted.

    While a demo runs, its own UI is the one to look at, and this one takes over when it ends.
    Raises :class:`DemoError`.
    """
    with sole_demo(places, patience_s=float("inf")):
        instance = prepare(places)
        stop_leftovers(places, instance)
        with (
            crawl_server(places, settings) as group,
            dagster_in(places, ui_port, group, idle=True) as dagster,
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
        raise DemoError("there is no index yet: run `laion-assets demo` (`make demo`) first")
    places.build_crawl()
    with contextlib.ExitStack() as stack:
        try:
            crawl_port = urlsplit(settings.crawl_source.data_url).port or 80
            stack.enter_context(SampleServer(places.crawl, port=crawl_port))
        except OSError as error:
            logger.info(f"the sample crawl is not served ({error})")
        options = settings.serve.listening_on(None, port)
        serve_index(index, options, settings.clip, settings.download, heads=settings.heads)


def show_summary(settings: Settings, places: Places) -> None:
    """Print the funnel, where the results are, a few searches, and what to do next."""
    lake = open_lake(settings.lake)
    print()
    print_funnel(query_funnel(lake))
    print_searches(settings, lake, SEARCHES[places.world])
    print(
        "\nWhere it is\n"
        f"  the lake      {lake}\n"
        f"  the report    {report(lake).as_uri()}\n"
        f"  any DuckDB    {lake.folder(CATALOG) / 'catalog.duckdb'}\n"
        "\nNext"
    )
    for line in next_steps(places, lake.folder(SEARCH_INDEX)):
        print(f"  {line}")


def next_steps(places: Places, index: Path) -> list[str]:
    """Commands to go on with in the demo's folder: by make in a checkout, else as installed."""
    own, drawn, config = _own_command(places.root), places.world == DRAWN, named_config()
    with_config = f"{CONFIG_VARIABLE}={shlex.quote(str(config))} " if config else ""
    of_world = "" if drawn and config == shipped_config(DRAWN) else with_config
    if not drawn and Path(laion_assets.__file__).parents[1] == places.root:
        ui, page = f"{of_world}make ui", f"{of_world}make search"
    else:
        world = f" --world {places.world}" if drawn else ""
        ui, page = f"{of_world}{own} ui{world}", f"{of_world}{own} search-page{world}"
    width = len(page) + 4
    return [
        f"{ui:{width}}Dagster's UI on this instance",
        f"{page:{width}}the search page",
        f'{with_config}{own} sql "select stage, reason, n from funnel"',
        f'{own} search {shlex.quote(str(index))} "{SEARCHES[places.world][-1]}"',
    ]


def _own_command(folder: Path) -> str:
    """How this installation's ``laion-assets`` is called in a folder."""
    command = Path(sys.executable).with_name("laion-assets")
    if not command.exists():
        return f"{shlex.quote(sys.executable)} -m laion_assets.cli"
    if shutil.which(command.name) == str(command):
        return command.name
    beside = command.relative_to(folder) if command.is_relative_to(folder) else command
    return shlex.quote(str(beside))


def report(lake: Lake) -> Path:
    """The dataset's report, a page for a browser."""
    return lake.folder(DATASET_REPORT) / "report.html"


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
    """Print a line for each stage: what went in, what was kept, and the most frequent refusals."""
    counts: dict[str, dict[str, int]] = {stage: {} for stage in STAGES}
    for row in funnel.to_pylist():
        counts[row["stage"]][row["reason"]] = row["n"]
    print(f"{'stage':12}{'in':>9}{'kept':>9}   refused")
    for stage, of_stage in counts.items():
        n_in, kept = of_stage.pop("in", 0), of_stage.pop("kept", 0)
        refused = sorted(of_stage.items(), key=lambda item: -item[1])
        named = [f"{reason} {n:,}" for reason, n in refused[:_REASONS]]
        if more := refused[_REASONS:]:
            named.append(f"{sum(n for _, n in more):,} for {len(more)} other reasons")
        print(f"{stage:12}{n_in:>9,}{kept:>9,}   {', '.join(named)}".rstrip())


def print_searches(settings: Settings, lake: Lake, texts: Sequence[str]) -> None:
    """Print the best hit for each text."""
    from laion_assets.clip.model import load_clip
    from laion_assets.knn.query import search_text

    model = load_clip(settings.clip)
    print("\nThe best hit for a few searches")
    for text in texts:
        for hit in search_text(lake.published(SEARCH_INDEX), text, model, 1):
            print(f"  {text:20}{hit.score:.3f}  {hit.text}  {hit.url}")
