"""What an operator asks of the crawl source and of Dagster's instance."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from laion_assets.defs.partitions import crawls
from tests.cli.conftest import Stages, laion_assets, refused
from tests.processes import free_port


def test_crawls_lists_what_the_source_has(stages: Stages) -> None:
    lines = stages.done["crawls"].out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == ["CC-MAIN-2000-10", "CC-MAIN-2000-05"]
    assert "Sample crawl, March 2000" in lines[0]


def test_a_source_that_does_not_answer_is_reported_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    url = f"http://127.0.0.1:{free_port()}/"
    config.write_text(
        f'[crawl_source]\ncollinfo_url = "{url}collinfo.json"\ndata_url = "{url}"\nattempts = 1\n'
    )
    refused(laion_assets("crawls", "--config", config), f".*{url}collinfo.json")


def test_a_crawl_is_added_by_hand(
    stages: Stages, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    done = laion_assets("crawl", "add", "CC-MAIN-2000-10", "--config", stages.config)
    assert (done.code, done.out) == (0, "added CC-MAIN-2000-10 with 2 segments\n"), done.err
    done = laion_assets("crawl", "add", "LIST-gallery", "--config", stages.config)
    assert (done.code, done.out) == (0, "added LIST-gallery with 1 segments\n"), done.err
    assert list(instance.get_dynamic_partitions(crawls.name or "")) == [
        *("CC-MAIN-2000-10", "LIST-gallery"),
    ]


def test_what_would_fail_is_said_before_it_does(stages: Stages, tmp_path: Path) -> None:
    done = laion_assets("check", "--config", stages.config)
    assert done.code == 0, done.out + done.err
    assert [line.split()[0] for line in done.out.splitlines() if line[0] != " "].count("ok") >= 10
    config = tmp_path / "mine.toml"
    text = stages.config.read_text().replace('pretrained = "laion', 'pretrained = "absent')
    config.write_text(text)
    failing = laion_assets("check", "--config", config)
    assert failing.code == 1
    assert failing.err.endswith("\nlaion-assets: a run would fail: settings, model\n")
    assert "fails  model         'absent" in failing.out


def test_a_run_is_estimated_before_it_starts(stages: Stages) -> None:
    words = ("--config", stages.config, "--cores", "8", "--gpus", "0")
    done = laion_assets("estimate", "CC-MAIN-2000-10", "--segments", 1, *words)
    assert done.code == 0, done.err
    assert done.out.startswith("CC-MAIN-2000-10: 1 segment, 2 WAT files\n")
    assert "hours on one machine with 8 cores and no GPU" in done.out
    assert "4 requests to the crawl source" in done.out
    assert "assumed" not in done.err
    half = laion_assets("estimate", "CC-MAIN-2000-10", "--wat-fraction", 0.5, *words)
    assert half.out.startswith("CC-MAIN-2000-10: 2 segments, 2 WAT files\n")
    unknown = laion_assets("estimate", "CC-MAIN-1999-50", *words)
    assert unknown.code == 0
    assert "the number of WAT files is assumed: " in unknown.err


def test_prune_works_on_the_instance_that_dagster_home_names(
    stages: Stages, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("prune", "--dry-run", "--config", stages.config)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    refused(laion_assets(*words), "set DAGSTER_HOME to")
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    done = laion_assets(*words)
    assert done.code == 0, done.err
    assert done.out.startswith("would delete: the logs of 0 runs")
