"""The command, started and stopped as a person does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from laion_assets.cli import main
from laion_assets.settings import CONFIG_VARIABLE, sample_config
from tests.processes import PATIENCE_S
from tests.search.conftest import SmallLake


def test_serve_prints_its_address_and_stops_when_asked(small_lake: SmallLake) -> None:
    command = [sys.executable, "-m", "laion_assets.cli", "serve", str(small_lake.index)]
    with subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {CONFIG_VARIABLE: str(sample_config())},
    ) as process:
        assert process.stdout
        assert process.stderr
        address = process.stdout.readline().removeprefix("search page: ").strip()
        assert address.startswith("http://127.0.0.1:")
        assert httpx.get(f"{address}about", timeout=PATIENCE_S).json()["samples"] == 30
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == ""


def test_a_folder_that_is_no_index_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path), "--subset", str(tmp_path)]) == 1
    assert "cannot be searched" in capsys.readouterr().err
