"""Searching an index, and what the queries say where there is nothing to ask."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Done, Stages, laion_assets, refused


def hits(done: Done) -> list[tuple[int, float, str, str]]:
    """(rank, score, text, url) of each hit."""
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    found = []
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        rank, score, text = first.split(maxsplit=2)
        found.append((int(rank), float(score), text, second.strip()))
    return found


@pytest.fixture(scope="module")
def search(stages: Stages) -> tuple[object, ...]:
    words = ("search", "--config", stages.config, "--subset", stages.root / "subset")
    return (*words, stages.root / "idx")


def own_score(found: list[tuple[int, float, str, str]], row: dict[str, Any]) -> float:
    [score] = [score for _, score, *what in found if what == [row["TEXT"], row["URL"]]]
    return score


def test_search_by_a_text_is_over_the_images(stages: Stages, search: tuple[object, ...]) -> None:
    part = stages.part.to_pylist()
    found = hits(laion_assets(*search, part[3]["TEXT"], "-k", len(part)))
    assert [rank for rank, *_ in found] == list(range(1, len(part) + 1))
    scores = [score for _, score, *_ in found]
    assert scores == sorted(scores, reverse=True)
    rows = Counter((row["TEXT"], row["URL"]) for row in part)
    assert Counter((text, url) for *_, text, url in found) == rows
    assert own_score(found, part[3]) == pytest.approx(part[3]["similarity"], abs=2e-3)


def test_search_by_an_image_may_be_over_the_texts(
    stages: Stages, search: tuple[object, ...], tmp_path: Path
) -> None:
    part = stages.part.to_pylist()
    name = f"{part[5]['key']}.jpg"
    with tarfile.open(stages.root / "shards" / "00000.tar") as tar:
        tar.extract(name, tmp_path, filter="data")
    words = ("--image", tmp_path / name, "--over", "text", "-k", len(part))
    found = hits(laion_assets(*search, *words))
    assert own_score(found, part[5]) == pytest.approx(part[5]["similarity"], abs=2e-3)


def test_search_outside_a_lake_asks_for_the_subset(stages: Stages) -> None:
    words = ("search", "--config", stages.config, stages.root / "idx", "a red apple")
    refused(laion_assets(*words), "idx is not in a lake: name the subset")


@pytest.mark.parametrize("words", [("search", "idx", "a red apple"), ("serve", "idx")])
def test_a_subset_that_does_not_exist_is_named(stages: Stages, words: tuple[str, ...]) -> None:
    command, index, *more = words
    given = (command, "--config", stages.config, stages.root / index, *more, "--subset", "nosuch")
    refused(laion_assets(*given), "nosuch does not exist")


def test_sql_names_the_catalog_of_the_settings(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')
    refused(
        laion_assets("sql", "--config", config, "select 1"),
        f"{re.escape(str(tmp_path))}/lake/catalog/catalog.duckdb does not exist",
    )


def test_why_needs_a_lake(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(f'[lake]\nroot = "{tmp_path}/lake"\n')
    done = laion_assets("why", "--config", config, "https://example.org/a.jpg")
    refused(done, f"the lake {re.escape(str(tmp_path))}/lake does not exist")
