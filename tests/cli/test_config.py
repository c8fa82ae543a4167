"""``--config`` alone decides: the file that LAION_ASSETS_CONFIG names is not read beside it.

The conftest names a file that does not exist, and the stages run in that environment. Here every
command must reach for the file that it was given, which is wrong, and for no other.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from laion_assets.cli.parser import GROUPS
from tests.cli.conftest import NO_SETTINGS, laion_assets, refused

WORDS = {
    "pairs": ["a.wat.gz", "-o", "out"],
    "download": ["a.parquet", "-o", "out"],
    "embed": ["00000.tar", "-o", "out"],
    "filter": [".", "-o", "out"],
    "calibrate": [],
    "index": [".", "-o", "out"],
    "build": ["a.parquet", "-o", "out"],
    "dalle": [".", ".", "-o", "out"],
    "draw": [".", "a red heart", "-o", "out"],
    "search": [".", "a red apple"],
    "serve": ["."],
    "sql": ["select 1"],
    "why": ["https://example.org/a.jpg"],
    "export": ["-o", "out"],
    "fetch": ["catalog"],
    "remove": ["--apply"],
    "heads convert": ["a.parquet", "-o", "out.json"],
    "heads list": [],
    "check": [],
    "crawls": [],
    "crawl add": ["CC-MAIN-2000-10"],
    "estimate": ["CC-MAIN-2000-10"],
    "prune": [],
    "verify": [],
    "demo": [],
    "ui": [],
    "dagster": [],
    "webserver": [],
    "search-page": [],
}
"""Command -> what it is given; inputs are in the current folder."""
WITHOUT = {"metrics", "sample-crawl serve"}
"""Commands that take ``--config`` as all do, and have nothing to read there."""
INPUTS = [
    *("a.wat.gz", "a.parquet", "00000.tar", "part-00000.parquet", "options.json"),
]


def test_no_command_is_forgotten() -> None:
    names = {command.name for _, group in GROUPS for command in group}
    assert names == WORDS.keys() | WITHOUT


@pytest.mark.parametrize("command", WORDS)
def test_the_named_settings_are_the_ones_that_are_read(
    command: str, tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    for name in INPUTS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "wrong.toml").write_text("[")
    done = laion_assets(*command.split(), *WORDS[command], "--config", "wrong.toml")
    refused(done, r"wrong\.toml is not TOML")
    assert NO_SETTINGS not in done.err
