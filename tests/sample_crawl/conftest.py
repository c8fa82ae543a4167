from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from laion_assets.sample_crawl.build import Manifest, build_sample_crawl
from laion_assets.sample_crawl.server import SampleServer


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crawl")
    build_sample_crawl(out)
    return out


@pytest.fixture(scope="package")
def manifest(built: Path) -> Manifest:
    return Manifest.read(built)


@pytest.fixture(scope="package")
def server(built: Path) -> Iterator[SampleServer]:
    with SampleServer(built) as running:
        yield running
