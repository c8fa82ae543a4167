"""Extents are counted at a real crawl source; the estimate is the cost model's."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from laion_assets.preflight.cost import Assumptions
from laion_assets.preflight.estimate import Extent, Machine, assumptions, estimated, extent_of
from laion_assets.settings import Settings
from tests.conftest import FolderServer

CRAWL = "CC-MAIN-2000-10"
MACHINE = Machine(cores=8, gpus=1)


def settings(**sections: object) -> Settings:
    return Settings.model_validate(sections)


def test_what_the_settings_take_is_counted(
    tmp_path: Path, serve_folder: Callable[[Path], FolderServer]
) -> None:
    paths = [f"crawl-data/{CRAWL}/segments/{s}.1/wat/{n}" for s in range(3) for n in range(10)]
    listed = tmp_path / "crawl-data" / CRAWL / "wat.paths.gz"
    listed.parent.mkdir(parents=True)
    listed.write_bytes(gzip.compress("\n".join(paths).encode()))
    url = serve_folder(tmp_path).url
    some = settings(crawl_source={"data_url": url, "wat_fraction": 0.25})
    assert extent_of(some, CRAWL, 2) == Extent(2, 6)
    assert extent_of(some, CRAWL, 99) == Extent(3, 9)
    one = settings(
        crawl_source={"data_url": url, "wat_files_per_segment": 4}, discovery={"segments": 1}
    )
    assert extent_of(one, CRAWL, None) == Extent(1, 4)
    lost = extent_of(some, "CC-MAIN-2000-05", 2)
    assert (lost.segments, lost.wat_files) == (2, 2 * 225)
    assert "CC-MAIN-2000-05/wat.paths.gz does not exist" in lost.assumed


def test_settings_and_machine_change_the_estimate() -> None:
    extent = Extent(2, 20)
    usual = estimated(settings(), extent, MACHINE)
    assert usual.of == Assumptions(
        wat_files=20, machine_cores=8, concurrency=settings().download.concurrency
    )
    assert usual.disk == usual.stored / 2
    assert usual.crawl_requests == 22
    assert usual.image_requests == pytest.approx(20 * 230 * 104 * 0.3 * 1.1)
    small = estimated(settings(download={"encode_quality": 85, "image_size": 128}), extent, MACHINE)
    images = [line.stored for each in (usual, small) for line in each.lines[2:3]]
    assert images[1] == pytest.approx(images[0] * 0.54 / 4)
    kept = assumptions(settings(download={"resize_mode": "no"}), extent, MACHINE)
    assert kept.image_kb == Assumptions.fetched_kb
    slow = estimated(settings(clip={"device": "cpu"}), extent, MACHINE)
    assert slow.hours > usual.hours
    assert not any(line.gpu for line in slow.lines)
