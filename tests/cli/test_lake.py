"""Exporting from a lake and removing from it, where there is little to do."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest

from tests.cli.conftest import laion_assets, refused


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings whose lake, an empty folder, exists."""
    (tmp_path / "lake").mkdir()
    path = tmp_path / "mine.toml"
    path.write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')
    return path


@pytest.mark.parametrize("words", [("export", "-o", "out"), ("remove", "--ledger")])
def test_the_lake_must_exist(words: tuple[str, ...], config: Path, tmp_path: Path) -> None:
    (tmp_path / "lake").rmdir()
    done = laion_assets(*words, "--config", config)
    refused(done, f"the lake {re.escape(str(tmp_path))}/lake does not exist: name .* --config")


def test_an_unknown_licence_is_wrong_use(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        laion_assets("export", "--config", config, "-o", "out", "--license", "mine")
    assert ended.value.code == 2


def test_an_asset_that_was_never_made_cannot_be_fetched(config: Path) -> None:
    refused(
        laion_assets("fetch", "catalog", "--config", config), "catalog has not been materialized"
    )


def test_removing_adds_to_the_list_and_changes_nothing_else(config: Path, tmp_path: Path) -> None:
    words = ("remove", "--config", config, "--url", "https://a.test/me.jpg", "--md5", "0" * 32)
    done = laion_assets(*words, "--reason", "request 17")
    assert done.code == 0, done.err
    entries = ["url:https://a.test/me.jpg", f"md5:{'0' * 32}"]
    assert done.out.splitlines() == [
        *(f"added  {entry}" for entry in entries),
        "no partition holds a listed sample",
    ]
    comment, *listed = (tmp_path / "lake/removals/requests.txt").read_text().splitlines()
    assert comment.endswith("request 17")
    assert listed == entries


def test_applying_the_lists_to_an_empty_lake_finds_nothing_left(
    config: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("remove", "--apply", "--config", config)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    refused(laion_assets(*words), "set DAGSTER_HOME to")
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    done = laion_assets(*words)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "nothing that the lists name is left in the lake"


def test_removing_needs_something_to_do(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        laion_assets("remove", "--config", config)
    assert ended.value.code == 2
