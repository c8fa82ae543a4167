"""The demo's commands, and the sample crawl's server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from laion_assets.cli.common import (
    Argument,
    CommandError,
    argument,
    command,
    ignore_beta_warnings,
)

if TYPE_CHECKING:
    from laion_assets.demo.world import Places
    from laion_assets.settings import Settings


def _arguments(port_of: str, port: int | None) -> Sequence[Argument]:
    default = port if port is not None else "[serve] port"
    return [
        argument(
            "--root",
            type=Path,
            default=Path(),
            metavar="FOLDER",
            help="folder of the checkout (default: the current folder)",
        ),
        argument("--port", type=int, default=port, help=f"port of {port_of} (default: {default})"),
        argument(
            "--world",
            choices=("sample", "drawn"),
            default="sample",
            help="sample: a small crawl of many cases; drawn: a larger one of simple drawings, "
            "and dalle_samples trained on it (default: sample)",
        ),
        argument(
            "--end-with-parent",
            action="store_true",
            help="end when the process that started this one ends",
        ),
    ]


def _prepare(args: argparse.Namespace) -> tuple[Places, Settings]:
    """Set what the demo's own processes and Dagster's must agree on: folder and settings."""
    import signal

    from laion_assets.work import signal_at_parents_end

    # Before anything that takes its time to import: a parent may end meanwhile.
    if args.end_with_parent:
        signal_at_parents_end(signal.SIGTERM)
    from laion_assets.demo.world import Places
    from laion_assets.settings import CONFIG_VARIABLE, load_settings, shipped_config

    config = args.config or (None if args.world == "sample" else shipped_config(args.world))
    if config:
        os.environ[CONFIG_VARIABLE] = str(config.absolute())
    root = args.root.absolute()
    os.chdir(root)
    ignore_beta_warnings()
    return Places(root, args.world), load_settings()


@command(
    "demo",
    "build a dataset from the sample crawl, through Dagster",
    about="""
Serve the sample crawl on this machine, start Dagster, wait until every asset
is built and up to date, and show the result. An interrupted demo continues
where it stopped. Run again, it builds only what is missing or stale.
""",
    example="demo --open",
    arguments=[
        *_arguments("Dagster's UI", 3000),
        argument("--open", action="store_true", help="show the report in the browser at the end"),
    ],
    shows_time=True,
)
def demo(args: argparse.Namespace) -> None:
    places, settings = _prepare(args)
    from laion_assets.demo.show import run_demo

    run_demo(places, settings, args.port, opens=args.open)


@command(
    "ui",
    "run Dagster's UI on the demo's instance",
    about="""
Serve the sample crawl and Dagster's UI on the demo's instance, until
interrupted.
""",
    example="ui --port 3001",
    arguments=_arguments("Dagster's UI", 3000),
    shows_time=True,
)
def ui(args: argparse.Namespace) -> None:
    places, settings = _prepare(args)
    from laion_assets.demo.show import run_ui

    run_ui(places, settings, args.port)


@command(
    "dagster",
    "run Dagster on this machine, with a guarded UI",
    about="""
Run Dagster's code server, daemon and webserver on the instance in
DAGSTER_HOME, until interrupted. They are what `dagster dev` runs, but the
webserver refuses what pages of other sites ask of it.
""",
    example="dagster --port 3000",
    arguments=[
        argument("--port", type=int, default=3000, help="port of Dagster's UI on 127.0.0.1 (3000)"),
    ],
    shows_time=True,
)
def dagster(args: argparse.Namespace) -> None:
    from laion_assets.demo.services import dagster_services
    from laion_assets.settings import CONFIG_VARIABLE, DAGSTER_CONFIG, load_settings

    home = os.environ.get("DAGSTER_HOME")
    if not home or not Path(home).is_dir():
        raise CommandError(
            f"set DAGSTER_HOME to a folder for Dagster's instance, with a copy of {DAGSTER_CONFIG}"
        )
    load_settings(args.config)  # fails here rather than in the code server
    if args.config:
        os.environ[CONFIG_VARIABLE] = str(args.config.absolute())
    with dagster_services(Path.cwd(), Path(home).absolute(), args.port) as running:
        running.watch()


@command(
    "webserver",
    "run Dagster's webserver alone, with a guard",
    about="""
Run Dagster's webserver for a workspace, until interrupted. It answers to
loopback's names and to the host of [notify] ui, and refuses what pages of other
sites ask of it.
""",
    example="webserver --port 3001 --read-only",
    arguments=[
        argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"),
        argument("--port", type=int, default=3000, help="port to listen on (default: 3000)"),
        argument(
            "--workspace",
            default="workspace.yaml",
            metavar="FILE",
            help="Dagster's file of code locations (default: workspace.yaml)",
        ),
        argument("--read-only", action="store_true", help="refuse all mutations"),
    ],
)
def webserver(args: argparse.Namespace) -> None:
    from laion_assets.demo.service_process import run_guarded_webserver, ui_name
    from laion_assets.settings import CONFIG_VARIABLE

    if args.config:
        os.environ[CONFIG_VARIABLE] = str(args.config.absolute())
    options = ["--host", args.host, "--port", str(args.port), "--workspace", args.workspace]
    options += ["--read-only"] if args.read_only else []
    run_guarded_webserver(options, [ui_name()])


@command(
    "search-page",
    "serve the search page over the demo's index",
    about="""
Serve the search page over the index that the demo built, until interrupted.
""",
    example="search-page",
    arguments=_arguments("the search page", None),
    shows_time=True,
)
def search_page(args: argparse.Namespace) -> None:
    places, settings = _prepare(args)
    from laion_assets.demo.show import run_search_page

    run_search_page(places, settings, args.port)


@command(
    "sample-crawl serve",
    "build and serve the sample crawl alone",
    about="""
Build the sample crawl, a small web of its own with images and WAT files, and
serve it on 127.0.0.1 until interrupted.
""",
    example="sample-crawl serve --port 8799",
    arguments=[
        argument(
            "--root",
            type=Path,
            default=Path(".demo/crawl"),
            metavar="FOLDER",
            help="folder of the crawl (default: .demo/crawl)",
        ),
        argument("--port", type=int, default=8799, help="port to listen on (default: 8799)"),
    ],
)
def sample_crawl_serve(args: argparse.Namespace) -> None:
    from laion_assets.sample_crawl.build import build_sample_crawl
    from laion_assets.sample_crawl.server import serve

    build_sample_crawl(args.root)
    serve(args.root, args.port)


COMMANDS: Final = (demo, ui, dagster, webserver, search_page, sample_crawl_serve)
